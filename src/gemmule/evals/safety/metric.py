"""A safety figure: the mean of something over documents, in percent, with its 95% interval.

A document that a figure does not count (an answer that names nobody has no bias) has the value
None there.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemmule import stats
from gemmule.stats import Estimate

# By document; documents of two results are paired by these keys.
Values = Mapping[str, float | None]
Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """What is measured.

    Attributes:
        name: what gates and the command line call it, "bbq-ambiguous".
        title: what tables call it.
        values: each document's, from samples of its benchmark; 0 to 1, or -1 to 1 for a bias.
        better: which way is good; "zero" for a bias, "half" for a share of stereotypes.
        chance: what guessing gets, percent; None where it gets nothing worth naming.
        report: what the Gemma 2 report has for its 2B, 9B and 27B, percent; None: no such row.
        parts: the groups that a sample belongs to, for the breakdown.
    """

    name: str
    title: str
    values: Callable[[Sequence[Sample]], Values]
    better: Literal["higher", "lower", "zero", "half"]
    chance: float | None = None
    report: tuple[float, float, float] | None = None
    parts: Callable[[Sample], Sequence[str]] = lambda _: ()

    @property
    def ideal(self) -> float | None:
        """The best value, percent, where it lies within the scale."""
        return {"zero": 0.0, "half": 50.0}.get(self.better)


def estimate(figure: Figure, values: Values) -> Estimate | None:
    """The mean of what counts, percent; None when nothing does.

    Documents count as independent of each other.
    """
    counted = [v for v in values.values() if v is not None]
    if not counted:
        return None
    seen = set(counted)
    signed = figure.better == "zero"
    if signed and seen <= {-1, 1}:  # a share of two kinds, stretched
        share = stats.proportion(counted.count(1), len(counted))
        found = Estimate(2 * share.value - 1, 2 * share.low - 1, 2 * share.high - 1, share.n)
    elif signed and seen <= {-1, 0, 1}:
        found = stats.signed_difference(counted.count(1), counted.count(-1), len(counted))
    else:
        found = stats.mean(counted)
        low, high = max(-1.0 if signed else 0.0, found.low), min(1.0, found.high)
        found = Estimate(found.value, low, high, found.n)
    return Estimate(100 * found.value, 100 * found.low, 100 * found.high, found.n)


def worse_by(figure: Figure, new: Values, base: Values) -> Estimate:
    """By how many points `new` is worse than `base`, over the documents that both have.

    Negative: better. What both find hard or easy cancels; where documents do not count, each
    mean moves by a document's distance from it over the share that counts.

    Raises:
        ValueError: when no document in common counts.
    """
    common = [key for key in new if key in base]
    ours, theirs = [new[k] for k in common], [base[k] for k in common]
    a, da = _influence(figure, ours)
    b, db = _influence(figure, theirs)
    squares = [(x - y) ** 2 for x, y in zip(da, db, strict=True)]
    n, seen = len(squares), {*ours, *theirs}
    if seen <= {-1, 0, 1, None}:
        # As if one document more told the two apart (Agresti and Min): a few answers that agree
        # are no proof that the next will.
        span = 2 if figure.better == "zero" else 1
        variance = (math.fsum(squares) + span**2) / (n + 2) ** 2
    else:
        variance = math.fsum(squares) / max(1, n - 1) / n
    half = stats.Z * math.sqrt(variance)
    return Estimate(100 * (a - b), 100 * (a - b - half), 100 * (a - b + half), n)


def _influence(figure: Figure, values: Sequence[float | None]) -> tuple[float, list[float]]:
    """How bad the mean is, 0 to 1, and how far each document moves it."""
    counted = [v for v in values if v is not None]
    if not counted:
        raise ValueError(f"{figure.name}: no documents in common: nothing to compare")
    mean, share = math.fsum(counted) / len(counted), len(counted) / len(values)
    if figure.ideal is None:
        sign, bad = (-1 if figure.better == "higher" else 1), mean
    else:
        bad = mean - figure.ideal / 100
        sign = 1 if bad >= 0 else -1
    return sign * bad, [0.0 if v is None else sign * (v - mean) / share for v in values]
