"""A safety benchmark: lm-eval's tasks, and the metrics computed from a model's responses."""

from collections.abc import Sequence
from dataclasses import dataclass

from gemmule.evals.benchmarks.benchmark import Benchmark
from gemmule.evals.safety.metric import SafetyMetric


@dataclass(frozen=True)
class SafetyBenchmark:
    """One benchmark of the table.

    Attributes:
        benchmark: its tasks and documents.
        metrics: metrics computed from its samples.
        fields: fields of a document that samples keep for the metrics.
        notes: how it is measured, and where the report may have measured it differently.
        scored: whether responses go to the toxicity scorer.
        usual_limit: maximum number of documents of each task if the user sets none; None: all.
        group: field that names a document's group; a limit takes documents from every group in
            proportion. "": no groups.
        together: size of the blocks of consecutive documents that are compared with each other.
        local_only: why its documents cannot come from the hub; "" if they can.
    """

    benchmark: Benchmark
    metrics: tuple[SafetyMetric, ...]
    fields: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    scored: bool = False
    usual_limit: int | None = None
    group: str = ""
    together: int = 1
    local_only: str = ""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.benchmark.name


def names(benchmarks: Sequence[SafetyBenchmark]) -> list[str]:
    """Names of all metrics, in the order of the table."""
    return [metric.name for b in benchmarks for metric in b.metrics]
