"""All safety benchmarks, in the order of the report's table."""

from collections.abc import Sequence

from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.evals.safety.bbq import BBQ
from gemmule.evals.safety.benchmark import SafetyBenchmark
from gemmule.evals.safety.continuations import REALTOXICITYPROMPTS, TOXIGEN, TOXIGEN_CONTINUATIONS
from gemmule.evals.safety.coreference import WINOBIAS, WINOGENDER
from gemmule.evals.safety.crows_pairs import CROWS_PAIRS
from gemmule.evals.safety.metric import SafetyMetric
from gemmule.evals.safety.truthfulqa import TRUTHFULQA

ALL: tuple[SafetyBenchmark, ...] = (
    REALTOXICITYPROMPTS,
    CROWS_PAIRS,
    BBQ,
    WINOGENDER,
    TRUTHFULQA,
    WINOBIAS,
    TOXIGEN,
    TOXIGEN_CONTINUATIONS,
)
REPORT = "Gemma 2 report (arXiv 2408.00118), its safety table, instruction-tuned"
SIZES = ("2B", "9B", "27B")


def metrics(benchmarks: Sequence[SafetyBenchmark] = ALL) -> dict[str, SafetyMetric]:
    """All metrics of some benchmarks, by name."""
    return {metric.name: metric for b in benchmarks for metric in b.metrics}


def chosen(names: Sequence[str] | None) -> tuple[SafetyBenchmark, ...]:
    """The benchmarks with these names, in the order of the table; None: all.

    Raises:
        ConfigError: for an unknown name.
    """
    if names is None:
        return ALL
    known = [b.name for b in ALL]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no safety benchmark {name!r}; {nearest(name, known)}")
    if not names:
        raise ConfigError(f"no safety benchmark is named; there are: {', '.join(known)}")
    return tuple(b for b in ALL if b.name in names)
