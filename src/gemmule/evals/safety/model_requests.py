"""From lm-eval's tasks to the requests that a model gets, and its responses."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gemmule.evals.benchmarks.lm_eval_tasks import LoadedBenchmark, first_documents
from gemmule.evals.safety.benchmark import SafetyBenchmark


class RequestModel(Protocol):
    """A model that responds to lm-eval's requests, as `GemmuleLM` does."""

    max_length: int

    def tok_encode(self, string: str) -> list[int]:
        """Encodes a text."""
        ...

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations, and whether each was the most likely."""
        ...

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Generated continuations."""
        ...


@dataclass(frozen=True)
class GenerationSettings:
    """How continuations are generated.

    Attributes:
        temperature: sampling temperature; 0 takes the most likely token.
        seed: seed of the sampler.
        max_new_tokens: longest continuation, in tokens.
    """

    temperature: float
    seed: int
    max_new_tokens: int

    def settings(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """A task's generation settings for lm-eval, with these in place of its own."""
        sampled = self.temperature > 0
        return {
            **task,
            "do_sample": sampled,
            "temperature": self.temperature,
            "max_gen_toks": self.max_new_tokens,
            **({"seed": self.seed} if sampled else {}),
        }


@dataclass(frozen=True)
class Question:
    """One document, as a model sees it.

    Attributes:
        key: identifies the document and everything that a model sees of it: questions of two
            results are the same if their keys are equal.
        sample: everything known before the response: benchmark, task, number, fields, prompt,
            choices.
        requests: lm-eval's instances; one for each choice, or one to continue.
    """

    key: str
    sample: Mapping[str, Any]
    requests: Sequence[Any]


def questions(
    benchmark: SafetyBenchmark,
    loaded: LoadedBenchmark,
    limit: int | None,
    generation: GenerationSettings,
) -> tuple[list[Question], int]:
    """The questions to ask, and the number of documents that there are.

    Args:
        benchmark: its definition.
        loaded: its tasks.
        limit: maximum number of documents of each task, as in `first_documents`; None: the
            benchmark's usual limit.
        generation: how continuations are generated.
    """
    limit = limit or benchmark.usual_limit
    result, available = [], 0
    for name, task in loaded.tasks.items():
        docs = task.eval_docs  # computed on each access
        available += len(docs)
        groups = None if limit is None else _groups(benchmark, docs)
        chosen = first_documents(len(docs), limit, groups=groups, together=benchmark.together)
        for number in chosen:
            result.append(_question(benchmark, name, task, number, docs[number], generation))
    return result, available


def _groups(benchmark: SafetyBenchmark, docs: Any) -> list[Any] | None:
    """The group of each document; None if the benchmark or this source of it has none."""
    if not benchmark.group or not len(docs) or benchmark.group not in docs[0]:
        return None
    return [doc[benchmark.group] for doc in docs]


def _question(
    benchmark: SafetyBenchmark,
    name: str,
    task: Any,
    number: int,
    doc: dict[str, Any],
    generation: GenerationSettings,
) -> Question:
    context = task.fewshot_context(doc, num_fewshot=benchmark.benchmark.shots)
    made = task.construct_requests(doc=doc, ctx=context, metadata=(name, number, 1))
    requests = made if isinstance(made, list) else [made]
    sample: dict[str, Any] = {
        "benchmark": benchmark.name,
        "task": name,
        "document": number,
        "fields": {field: doc[field] for field in benchmark.fields if field in doc},
        "prompt": context,
    }
    if benchmark.benchmark.kind == "choice":
        sample["choices"] = list(task.doc_to_choice(doc))
        visible: Any = [request.args for request in requests]
    else:
        settings = generation.settings(requests[0].args[1])
        sample["until"] = settings["until"]
        requests[0].arguments = (context, settings)
        visible = [context, settings]
    text = json.dumps([name, number, visible], ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return Question(f"{name}/{number}/{digest[:12]}", sample, requests)


def ask(asked: Sequence[Question], lm: RequestModel) -> list[dict[str, Any]]:
    """Samples: each question's own fields, its key, and the model's response."""
    samples: list[dict[str, Any]] = []
    if not asked:
        return samples
    choices = "choices" in asked[0].sample
    requests = [request for question in asked for request in question.requests]
    responses: list[Any] = lm.loglikelihood(requests) if choices else lm.generate_until(requests)
    rest = iter(responses)
    for question in asked:
        own = [next(rest) for _ in question.requests]
        response = {"log_likelihoods": [ll for ll, _ in own]} if choices else {"answer": own[0]}
        samples.append({"key": question.key, **question.sample, **response})
    return samples


def too_long(question: Question, lm: RequestModel) -> bool:
    """Whether a question is longer than the model's context, so that its oldest tokens are cut."""
    sample = question.sample
    texts = [*map(str, sample.get("choices", ())), ""]
    longest = str(sample["prompt"]) + max(texts, key=len)
    more = 0 if "choices" in sample else int(question.requests[0].args[1]["max_gen_toks"])
    if len(longest.encode(errors="surrogatepass")) + more < lm.max_length:
        return False  # every token has at least one byte
    return len(lm.tok_encode(longest)) + more > lm.max_length
