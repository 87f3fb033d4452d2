"""MATH (Hendrycks et al., 2021): competition problems from seven subjects."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files, worker_pool
from gemmule.evals.benchmarks.benchmark import Benchmark, Doc, LocalData

_FIELDS = {"problem": str, "level": str, "type": str, "solution": str}
_TASKS = {
    "Algebra": "minerva_math_algebra",
    "Counting & Probability": "minerva_math_counting_and_prob",
    "Geometry": "minerva_math_geometry",
    "Intermediate Algebra": "minerva_math_intermediate_algebra",
    "Number Theory": "minerva_math_num_theory",
    "Prealgebra": "minerva_math_prealgebra",
    "Precalculus": "minerva_math_precalc",
}
_SECONDS = 5  # of processor time for one score; the published answers take at most a tenth
_METRICS = ("exact_match", "math_verify")


def math(folder: Path) -> LocalData:
    """Reads test.jsonl: problem, level, type (the subject), solution.

    The few-shot examples are in lm-eval.
    """
    path = folder / "test.jsonl"
    splits: dict[str, dict[str, list[Doc]]] = {}
    for number, row in enumerate(local_files.jsonl(path, _FIELDS), 1):
        if row["type"] not in _TASKS:
            raise DataError(
                f"{path}:{number}: type is {row['type']!r}; expected one of {', '.join(_TASKS)}"
            )
        if not _boxed(row["solution"]):
            raise DataError(f"{path}:{number}: the solution has no answer in \\boxed{{}}")
        kept = {field: row[field] for field in _FIELDS}
        splits.setdefault(_TASKS[row["type"]], {"test": []})["test"].append(kept)
    return LocalData(splits, [path])


def _boxed(solution: str) -> bool:
    from lm_eval.tasks.minerva_math import utils

    boxed = utils.last_boxed_only_string(solution)
    return boxed is not None and boxed.startswith(("\\boxed{", "\\boxed "))


def grade_answers(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[dict[str, Any]]:
    """An lm-eval filter: the score of each document's answer by both metrics.

    An answer may be 9^{9^{9^9}}, or nested deeply enough to crash the interpreter. It is therefore
    parsed in a process that can be killed; it then counts as wrong, and "why" gives the reason.

    Args:
        resps: the model's answers to each document, of which the first counts.
        docs: documents with lm-eval's `solution` and `answer`.
    """
    jobs = [job for r, doc in zip(resps, docs, strict=True) for job in _jobs(r[0], doc)]
    results = iter(worker_pool.run_jobs("gemmule.evals.benchmarks.math_worker", jobs, _SECONDS))
    return [_outcome(results) for _ in docs]


def _jobs(response: str, doc: Doc) -> Iterator[Mapping[str, str]]:
    for metric in _METRICS:
        gold = doc["answer" if metric == "exact_match" else "solution"]
        yield {"metric": metric, "gold": gold, "response": response}


def _outcome(results: Iterator[Any]) -> dict[str, Any]:
    outcome: dict[str, Any] = {}
    for metric in _METRICS:
        result = next(results)
        outcome[metric] = int(result is True)
        if isinstance(result, worker_pool.JobFailure):
            outcome["why"] = f"{metric}: {result.reason}"
    return outcome


def scores(doc: Doc, results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The two scores of an outcome."""
    return {metric: results[0][metric] for metric in _METRICS}


_SETTINGS: dict[str, Any] = {
    "filter_list": [
        {"name": "none", "filter": [{"function": "custom", "filter_fn": grade_answers}]}
    ],
    "process_results": scores,
    # As in lm-eval, but longer: it sets no length and so allows 256 tokens, and three in ten of the
    # published solutions are longer.
    "generation_kwargs": {
        "until": ["Problem:"],
        "do_sample": False,
        "temperature": 0,
        "max_gen_toks": 1024,
    },
}

BENCHMARKS = (
    Benchmark(
        name="math",
        title="MATH",
        tasks=tuple(_TASKS.values()),
        shots=4,
        # Minerva's metric (Lewkowycz et al., 2022), for its few-shot examples: an answer is correct
        # if it ends as they do and sympy finds it equal. The samples also have math_verify, which
        # takes a number from anywhere in the answer.
        metric="exact_match",
        kind="generation",
        chance=None,
        folder="math",
        local=math,
        overrides=_SETTINGS,
    ),
)
