"""A safety benchmark: lm-eval's tasks, and the figures that are made of a model's answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemmule.evals.benchmarks.benchmark import Benchmark
from gemmule.evals.safety.metric import Figure


@dataclass(frozen=True)
class SafetyBenchmark:
    """One benchmark of the table.

    Attributes:
        benchmark: its tasks and documents.
        figures: what is computed from the samples; several of BBQ's.
        fields: of a document, what samples keep for the figures.
        notes: how this is measured, and where the report may have done otherwise.
        scored: whether answers go to the toxicity scorer.
        usual_limit: so many documents are asked unless the user wants another number; None: all.
        together: documents that are compared with each other stand so many in a row.
        local_only: why its documents cannot come from the hub; "" where they can.
    """

    benchmark: Benchmark
    figures: tuple[Figure, ...]
    fields: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scored: bool = False
    usual_limit: int | None = None
    together: int = 1
    local_only: str = ""

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return self.benchmark.name


def names(benchmarks: Sequence[SafetyBenchmark]) -> list[str]:
    """Of every figure, in the order of the table."""
    return [figure.name for b in benchmarks for figure in b.figures]
