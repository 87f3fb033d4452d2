"""Scores of answers that are programs: all programs of a task run in a sandbox together."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemmule.evals.benchmarks.benchmark import Doc, TaskConfig

if TYPE_CHECKING:
    from gemmule.sandbox import Sandbox

METRIC = "pass@1"
_STDERR_KEPT = 2000  # characters from the end of a program's standard error, where exceptions are


def sandboxed(
    settings: "Callable[[Sandbox, str], dict[str, Any]]",
) -> "Callable[[Sandbox], TaskConfig]":
    """Turns settings(sandbox, task) into a function from a sandbox to settings(task)."""
    return functools.partial(functools.partial, settings)


def settings(sandbox: "Sandbox", program: Callable[[Doc, str], str]) -> dict[str, Any]:
    """The part of a task's lm-eval settings that runs and scores programs.

    Args:
        sandbox: where the programs run.
        program: makes a program from a document and an answer; it is correct if it runs to its end.
    """

    # A function of its own: lm-eval copies settings deeply, and a sandbox must not be copied.
    def run_answers(resps: Sequence[Sequence[str]], docs: Sequence[Doc]) -> list[dict[str, str]]:
        from gemmule.sandbox import graders

        sources = [program(doc, r[0]) for r, doc in zip(resps, docs, strict=True)]
        return [
            {"status": outcome.status, "stderr": outcome.stderr[-_STDERR_KEPT:]}
            for outcome in graders.grade(sandbox, sources)
        ]

    step = {"function": "custom", "filter_fn": run_answers}
    return {
        "filter_list": [{"name": "none", "filter": [step]}],
        "process_results": scores,
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
    }


def scores(doc: Doc, results: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """1 for a program that ran to its end, otherwise 0."""
    return {METRIC: int(results[0]["status"] == "passed")}
