"""All benchmarks, and the suites that combine them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.evals.benchmarks.benchmark import Benchmark
from gemmule.evals.benchmarks.tasks import (
    agieval,
    arc,
    bbh,
    boolq,
    drop,
    gsm8k,
    hellaswag,
    hendrycks_math,
    humaneval,
    ifeval,
    mbpp,
    mmlu,
    nq,
    piqa,
    siqa,
    triviaqa,
    winogrande,
)

T = TypeVar("T")


@dataclass(frozen=True)
class SuiteEntry:
    """A benchmark in a suite.

    Attributes:
        benchmark: the benchmark.
        limit: maximum number of questions of each of its tasks, the first ones; None: all.
    """

    benchmark: Benchmark
    limit: int | None = None


@dataclass(frozen=True)
class Suite:
    """Benchmarks that are run together.

    Attributes:
        name: name on the command line, "quick".
        about: its purpose, in one line.
        entries: benchmarks in the order of the table.
    """

    name: str
    about: str
    entries: tuple[SuiteEntry, ...]


_MODULES = (
    mmlu,
    arc,
    gsm8k,
    agieval,
    drop,
    bbh,
    winogrande,
    hellaswag,
    hendrycks_math,
    piqa,
    siqa,
    boolq,
    triviaqa,
    nq,
    humaneval,
    mbpp,
    ifeval,
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {b.name: b for module in _MODULES for b in module.BENCHMARKS}
)
# The rows of the report's table of pre-trained models, in its order, and IFEval.
_REPORT = (
    "mmlu",
    "arc-c",
    "gsm8k",
    "agieval",
    "drop",
    "bbh",
    "winogrande",
    "hellaswag",
    "math",
    "arc-e",
    "piqa",
    "siqa",
    "boolq",
    "triviaqa",
    "nq",
    "humaneval",
    "mbpp",
    "ifeval",
)
# Benchmarks on which a model of a few million parameters can be above chance, limited to what two
# cores evaluate in about two minutes: a million tokens of the quickstart's tokenizer. Except for a
# few of BoolQ, no prompt is longer than its model's context.
_QUICK = {
    "arc-e": 1000,
    "piqa": 1000,
    "siqa": 1000,
    "boolq": 500,
    "winogrande": 500,
    "hellaswag-0": 800,
    "mmlu-cloze": 10,  # of each of 57 subjects
}
SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        "report": Suite(
            "report",
            "every row of the Gemma 2 report's table, measured as in the report, and IFEval",
            tuple(SuiteEntry(BENCHMARKS[name]) for name in _REPORT),
        ),
        "quick": Suite(
            "quick",
            "a small model in minutes on a CPU: parts of seven benchmarks, all multiple choice",
            tuple(SuiteEntry(BENCHMARKS[name], limit) for name, limit in _QUICK.items()),
        ),
    }
)


def find(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    return _named(name, BENCHMARKS, "benchmark")


def suite(name: str) -> Suite:
    """The suite of this name.

    Raises:
        ConfigError: if there is none, with the nearest name.
    """
    return _named(name, SUITES, "suite")


def _named(name: str, known: Mapping[str, T], kind: str) -> T:
    if name not in known:
        hint = nearest(name.lower(), list(known))
        allowed = "" if hint.startswith("allowed") else f" (there are: {', '.join(known)})"
        raise ConfigError(f"there is no {kind} {name!r}: {hint}{allowed}")
    return known[name]
