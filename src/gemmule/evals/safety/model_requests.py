"""From lm-eval's tasks to what a model is asked, and its answers."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gemmule.evals.benchmarks.lm_eval_tasks import Loaded
from gemmule.evals.safety.benchmark import SafetyBenchmark


class Model(Protocol):
    """What is asked of a model, as `GemmuleLM` has it."""

    max_length: int

    def tok_encode(self, string: str) -> list[int]:
        """Ids of a text."""
        ...

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Of continuations, and whether each was the likeliest."""
        ...

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Continuations."""
        ...


@dataclass(frozen=True)
class Writing:
    """How continuations are written.

    Attributes:
        temperature: 0 takes the likeliest token.
        seed: of the draws.
        max_new_tokens: the longest continuation.
    """

    temperature: float
    seed: int
    max_new_tokens: int

    def settings(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """lm-eval's generation settings: a task's own, and these."""
        drawn = self.temperature > 0
        return {
            **task,
            "do_sample": drawn,
            "temperature": self.temperature,
            "max_gen_toks": self.max_new_tokens,
            **({"seed": self.seed} if drawn else {}),
        }


@dataclass(frozen=True)
class Question:
    """One document, as a model sees it.

    Attributes:
        key: the document and all that a model sees of it; equal in two results, equal questions.
        sample: what is known before the answer: benchmark, task, number, fields, prompt, choices.
        requests: lm-eval's instances; one for each choice, or one to continue.
    """

    key: str
    sample: Mapping[str, Any]
    requests: Sequence[Any]


def questions(
    benchmark: SafetyBenchmark, loaded: Loaded, limit: int | None, writing: Writing
) -> tuple[list[Question], int]:
    """The documents to be asked, and how many there are.

    Args:
        benchmark: which.
        loaded: its tasks.
        limit: so many of each task, drawn with a seed of their own: the same for every model;
            None: as many as is usual.
        writing: how continuations are written.
    """
    limit = limit or benchmark.usual_limit
    found, there = [], 0
    for name, task in loaded.tasks.items():
        docs = task.eval_docs  # made anew each time
        there += len(docs)
        for number in _drawn(len(docs), limit, benchmark.together):
            found.append(_question(benchmark, name, task, number, docs[number], writing))
    return found, there


def _drawn(count: int, limit: int | None, together: int) -> list[int]:
    if limit is None or limit >= count:
        return list(range(count))
    groups = range(count // together)
    some = sorted(random.Random(0).sample(groups, min(len(groups), -(-limit // together))))
    return [group * together + i for group in some for i in range(together)]


def _question(
    benchmark: SafetyBenchmark,
    name: str,
    task: Any,
    number: int,
    doc: dict[str, Any],
    writing: Writing,
) -> Question:
    context = task.fewshot_context(doc, num_fewshot=benchmark.benchmark.shots)
    found = task.construct_requests(doc=doc, ctx=context, metadata=(name, number, 1))
    requests = found if isinstance(found, list) else [found]
    sample: dict[str, Any] = {
        "benchmark": benchmark.name,
        "task": name,
        "document": number,
        "fields": {field: doc[field] for field in benchmark.fields if field in doc},
        "prompt": context,
    }
    if benchmark.benchmark.kind == "choice":
        sample["choices"] = list(task.doc_to_choice(doc))
        seen: Any = [request.args for request in requests]
    else:
        settings = writing.settings(requests[0].args[1])
        sample["until"] = settings["until"]
        requests[0].arguments = (context, settings)
        seen = [context, settings]
    text = json.dumps([name, number, seen], ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return Question(f"{name}/{number}/{digest[:12]}", sample, requests)


def ask(asked: Sequence[Question], lm: Model) -> list[dict[str, Any]]:
    """Samples: what a question knows, its key, and the model's answer."""
    found: list[dict[str, Any]] = []
    if not asked:
        return found
    choices = "choices" in asked[0].sample
    requests = [request for question in asked for request in question.requests]
    answers: list[Any] = lm.loglikelihood(requests) if choices else lm.generate_until(requests)
    rest = iter(answers)
    for question in asked:
        mine = [next(rest) for _ in question.requests]
        answer = {"log_likelihoods": [ll for ll, _ in mine]} if choices else {"answer": mine[0]}
        found.append({"key": question.key, **question.sample, **answer})
    return found


def too_long(question: Question, lm: Model) -> bool:
    """Whether a model does not see all of a question, its oldest tokens left out."""
    sample = question.sample
    texts = [*map(str, sample.get("choices", ())), ""]
    longest = str(sample["prompt"]) + max(texts, key=len)
    more = 0 if "choices" in sample else int(question.requests[0].args[1]["max_gen_toks"])
    if len(longest.encode(errors="surrogatepass")) + more < lm.max_length:
        return False  # a token is a byte at least
    return len(lm.tok_encode(longest)) + more > lm.max_length
