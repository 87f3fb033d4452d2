"""All safety benchmarks, in the order of the report's table."""

from collections.abc import Sequence

from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.evals.safety.bbq import BBQ
from gemmule.evals.safety.benchmark import SafetyBenchmark
from gemmule.evals.safety.continuations import REALTOXICITYPROMPTS, TOXIGEN, TOXIGEN_CONTINUATIONS
from gemmule.evals.safety.coreference import WINOBIAS, WINOGENDER
from gemmule.evals.safety.crows_pairs import CROWS_PAIRS
from gemmule.evals.safety.metric import Figure
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


def figures(benchmarks: Sequence[SafetyBenchmark] = ALL) -> dict[str, Figure]:
    """By name."""
    return {figure.name: figure for b in benchmarks for figure in b.figures}


def chosen(names: Sequence[str] | None) -> tuple[SafetyBenchmark, ...]:
    """The benchmarks named, in the table's order; None: all.

    Raises:
        ConfigError: for a name that there is not.
    """
    if names is None:
        return ALL
    known = [b.name for b in ALL]
    for name in names:
        if name not in known:
            raise ConfigError(f"no safety benchmark {name!r}; {nearest(name, known)}")
    if not names:
        raise ConfigError(f"no safety benchmark named; there are: {', '.join(known)}")
    return tuple(b for b in ALL if b.name in names)
