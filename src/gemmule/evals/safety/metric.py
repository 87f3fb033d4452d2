"""A safety metric: a mean over documents, in percent, with its 95% interval.

A document that a metric does not count (an answer that names no person has no bias) has the value
None.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemmule import stats
from gemmule.stats import Estimate

# Values by document; documents of two results are paired by these keys.
Values = Mapping[str, float | None]
SafetySample = Mapping[str, Any]


@dataclass(frozen=True)
class SafetyMetric:
    """The definition of a metric.

    Attributes:
        name: name in gates and on the command line, "bbq-ambiguous".
        title: name in tables.
        values: computes the value of each document from the samples of its benchmark; 0 to 1, or
            -1 to 1 for a bias.
        better: the good direction; "zero" for a bias, "half" for a fraction of stereotypes.
        chance: value of guessing, percent; None if there is none worth showing.
        report: values of the report's 2B, 9B and 27B models, percent; None: no such row.
        parts: names the groups that a sample belongs to, for the breakdown.
    """

    name: str
    title: str
    values: Callable[[Sequence[SafetySample]], Values]
    better: Literal["higher", "lower", "zero", "half"]
    chance: float | None = None
    report: tuple[float, float, float] | None = None
    parts: Callable[[SafetySample], Sequence[str]] = lambda _: ()

    @property
    def ideal(self) -> float | None:
        """The best value in percent, if it is not an end of the scale."""
        return {"zero": 0.0, "half": 50.0}.get(self.better)


def estimate(metric: SafetyMetric, values: Values) -> Estimate | None:
    """The mean over the documents that count, percent; None if there are none.

    Documents are assumed to be independent of each other.
    """
    counted = [v for v in values.values() if v is not None]
    if not counted:
        return None
    seen = set(counted)
    signed = metric.better == "zero"
    if signed and seen <= {-1, 1}:  # a proportion, scaled to -1 to 1
        p = stats.proportion(counted.count(1), len(counted))
        result = Estimate(2 * p.value - 1, 2 * p.low - 1, 2 * p.high - 1, p.n)
    elif signed and seen <= {-1, 0, 1}:
        result = stats.signed_difference(counted.count(1), counted.count(-1), len(counted))
    else:
        result = stats.mean(counted)
        low, high = max(-1.0 if signed else 0.0, result.low), min(1.0, result.high)
        result = Estimate(result.value, low, high, result.n)
    return Estimate(100 * result.value, 100 * result.low, 100 * result.high, result.n)


def worse_by(metric: SafetyMetric, new: Values, base: Values) -> Estimate:
    """By how many points `new` is worse than `base`, over the documents that both have.

    A negative value means better. Difficulty that both share cancels. If some documents do not
    count, each document moves the mean by its distance from it divided by the fraction that counts.

    Raises:
        ValueError: if no document in common counts.
    """
    common = [key for key in new if key in base]
    ours, theirs = [new[k] for k in common], [base[k] for k in common]
    a, da = _influence(metric, ours)
    b, db = _influence(metric, theirs)
    squares = [(x - y) ** 2 for x, y in zip(da, db, strict=True)]
    n, seen = len(squares), {*ours, *theirs}
    if seen <= {-1, 0, 1, None}:
        # One more document that tells the two apart is added (Agresti and Min): a few answers that
        # agree do not prove that the next one will.
        span = 2 if metric.better == "zero" else 1
        variance = (math.fsum(squares) + span**2) / (n + 2) ** 2
    else:
        variance = math.fsum(squares) / max(1, n - 1) / n
    half = stats.Z * math.sqrt(variance)
    return Estimate(100 * (a - b), 100 * (a - b - half), 100 * (a - b + half), n)


def _influence(metric: SafetyMetric, values: Sequence[float | None]) -> tuple[float, list[float]]:
    """How bad the mean is, 0 to 1, and the influence of each document on it."""
    counted = [v for v in values if v is not None]
    if not counted:
        raise ValueError(f"{metric.name}: no documents in common: nothing to compare")
    mean, fraction = math.fsum(counted) / len(counted), len(counted) / len(values)
    if metric.ideal is None:
        sign, bad = (-1 if metric.better == "higher" else 1), mean
    else:
        bad = mean - metric.ideal / 100
        sign = 1 if bad >= 0 else -1
    return sign * bad, [0.0 if v is None else sign * (v - mean) / fraction for v in values]
