"""From lm-eval's tasks to a model's answers, each kept as it comes: nothing is asked twice."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemmule.evals.benchmarks.tasks import Loaded
from gemmule.evals.safety.benchmark import SafetyBenchmark

if TYPE_CHECKING:
    from lm_eval.api.model import LM

_REQUESTS_AT_ONCE = 256  # what a stopped run asks again, at most


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
        return {
            **task,
            "do_sample": self.temperature > 0,
            "temperature": self.temperature,
            "max_gen_toks": self.max_new_tokens,
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
        seen = [context, settings, writing.seed if writing.temperature > 0 else None]
    text = json.dumps([name, number, seen], ensure_ascii=False, sort_keys=True)
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return Question(f"{name}/{number}/{digest[:12]}", sample, requests)


def ask(asked: Sequence[Question], lm: "LM") -> Iterator[list[dict[str, Any]]]:
    """Samples, some at a time: what a question knows, its key, and the model's answer."""
    batch: list[Question] = []
    for question in asked:
        batch.append(question)
        if sum(len(q.requests) for q in batch) >= _REQUESTS_AT_ONCE:
            yield _answered(batch, lm)
            batch = []
    if batch:
        yield _answered(batch, lm)


def _answered(batch: Sequence[Question], lm: "LM") -> list[dict[str, Any]]:
    found = []
    choices = "choices" in batch[0].sample
    requests = [request for question in batch for request in question.requests]
    if choices:
        answers: list[Any] = lm.loglikelihood(requests)
    else:
        answers = lm.generate_until(requests)
    rest = iter(answers)
    for question in batch:
        mine = [next(rest) for _ in question.requests]
        answer = {"log_likelihoods": [ll for ll, _ in mine]} if choices else {"answer": mine[0]}
        found.append({"key": question.key, **question.sample, **answer})
    return found
