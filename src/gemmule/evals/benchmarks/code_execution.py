"""Marks for answers that are programs: they run in a sandbox, all of a task's together."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemmule.evals.benchmarks.benchmark import Config, Row

if TYPE_CHECKING:
    from gemmule.sandbox import Sandbox

METRIC = "pass@1"
_LONGEST = 2000  # characters kept of what a program said, its end: an exception is there


def sandboxed(
    settings: "Callable[[Sandbox, str], dict[str, Any]]",
) -> "Callable[[Sandbox], Config]":
    """From a sandbox to a task's settings in it."""
    return functools.partial(functools.partial, settings)


def settings(sandbox: "Sandbox", program: Callable[[Row, str], str]) -> dict[str, Any]:
    """What of a task's lm-eval settings has to do with marks.

    Args:
        sandbox: where the programs run.
        program: made of a document and an answer; right if it comes to its end.
    """

    # A function of its own: lm-eval copies settings deeply, and a sandbox must not be copied.
    def graded(resps: Sequence[Sequence[str]], docs: Sequence[Row]) -> list[dict[str, str]]:
        from gemmule.sandbox import graders

        sources = [program(doc, r[0]) for r, doc in zip(resps, docs, strict=True)]
        return [
            {"status": outcome.status, "stderr": outcome.stderr[-_LONGEST:]}
            for outcome in graders.grade(sandbox, sources)
        ]

    return {
        "filter_list": [{"name": "none", "filter": [{"function": "custom", "filter_fn": graded}]}],
        "process_results": marks,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
    }


def marks(doc: Row, results: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """1 for a program that came to its end."""
    return {METRIC: int(results[0]["status"] == "passed")}
