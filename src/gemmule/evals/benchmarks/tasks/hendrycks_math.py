"""MATH (Hendrycks et al., 2021): problems of competitions, seven subjects."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import DataError
from gemmule.evals.benchmarks import local_files, worker_pool
from gemmule.evals.benchmarks.benchmark import Benchmark, Local, Row

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
_SECONDS = 5  # of processor time for one mark; the published answers take a tenth at most
_METRICS = ("exact_match", "math_verify")


def math(folder: Path) -> Local:
    """test.jsonl: problem, level, type (the subject), solution. lm-eval has the examples."""
    path = folder / "test.jsonl"
    splits: dict[str, dict[str, list[Row]]] = {}
    for number, row in enumerate(local_files.jsonl(path, _FIELDS), 1):
        if row["type"] not in _TASKS:
            raise DataError(
                f"{path}:{number}: type is {row['type']!r}; expected one of {', '.join(_TASKS)}"
            )
        if not _boxed(row["solution"]):
            raise DataError(f"{path}:{number}: the solution has no answer in \\boxed{{}}")
        kept = {field: row[field] for field in _FIELDS}
        splits.setdefault(_TASKS[row["type"]], {"test": []})["test"].append(kept)
    return Local(splits, [path])


def _boxed(solution: str) -> bool:
    from lm_eval.tasks.minerva_math import utils

    boxed = utils.last_boxed_only_string(solution)
    return boxed is not None and boxed.startswith(("\\boxed{", "\\boxed "))


def graded(resps: Sequence[Sequence[str]], docs: Sequence[Row]) -> list[dict[str, Any]]:
    """A filter of lm-eval's: for each document, what its answer gets by either metric.

    An answer may be 9^{9^{9^9}}, or deep enough to end the interpreter. It is therefore read in a
    process that can be killed; then it counts as wrong, and "why" says what happened.

    Args:
        resps: for each document the model's answers, of which the first one counts.
        docs: with lm-eval's `solution` and `answer`.
    """
    jobs = [job for r, doc in zip(resps, docs, strict=True) for job in _jobs(r[0], doc)]
    found = iter(worker_pool.answers("gemmule.evals.benchmarks.math_worker", jobs, _SECONDS))
    return [_outcome(found) for _ in docs]


def _jobs(response: str, doc: Row) -> Iterator[Mapping[str, str]]:
    for metric in _METRICS:
        gold = doc["answer" if metric == "exact_match" else "solution"]
        yield {"metric": metric, "gold": gold, "response": response}


def _outcome(found: Iterator[Any]) -> dict[str, Any]:
    outcome: dict[str, Any] = {}
    for metric in _METRICS:
        mark = next(found)
        outcome[metric] = int(mark is True)
        if isinstance(mark, worker_pool.Ended):
            outcome["why"] = f"{metric}: {mark.why}"
    return outcome


def marks(doc: Row, results: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The outcome's two marks."""
    return {metric: results[0][metric] for metric in _METRICS}


_SETTINGS: dict[str, Any] = {
    "filter_list": [{"name": "none", "filter": [{"function": "custom", "filter_fn": graded}]}],
    "process_results": marks,
    # lm-eval's, and room for a solution: it says no length, and the 256 tokens that it then
    # allows are not enough for three in ten of the published ones.
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
        # Minerva's own (Lewkowycz et al., 2022), whose examples these are: an answer counts when it
        # ends as they do, and sympy finds it equal. math_verify, which takes a number from
        # anywhere, is in the samples beside it.
        metric="exact_match",
        kind="generation",
        chance=None,
        folder="math",
        local=math,
        overrides=_SETTINGS,
    ),
)
