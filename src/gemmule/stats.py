"""Means and proportions with their 95% intervals: Wilson, Newcombe, stratified, paired, Student.

An interval says how far a score would move with other documents, windows or seeds of the same
kind. Standard library only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
Z = 1.959963984540054  # 97.5% quantile of the normal distribution


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of observations.
    """

    value: float
    low: float
    high: float
    n: int

    def json(self) -> dict[str, float | int]:
        """The form that result files keep."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def proportion(successes: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval (1927), which has a width even at 0 of n.

    Raises:
        ValueError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a proportion")
    return _wilson(successes / n, n, n)


def _wilson(p: float, size: float, n: int) -> Estimate:
    """Wilson interval of proportion `p` with effective sample size `size`."""
    spread = 1 + Z**2 / size
    center = (p + Z**2 / (2 * size)) / spread
    half = Z * math.sqrt(p * (1 - p) / size + Z**2 / (4 * size**2)) / spread
    return Estimate(p, min(p, max(0.0, center - half)), max(p, min(1.0, center + half)), n)


def mean(values: Sequence[float]) -> Estimate:
    """A mean: Wilson's interval if every value is 0 or 1, otherwise a normal interval.

    Raises:
        ValueError: if there are no values.
    """
    return stratified([values])


def stratified(groups: Sequence[Sequence[float]], *, equal: bool = False) -> Estimate:
    """The mean over the documents of several tasks.

    If every value is 0 or 1, the interval is Wilson's with the effective sample size of the
    weighted mean. It always has a width, and it is conservative where tasks differ. Otherwise it
    is a normal interval whose variance adds up the variances within the tasks.

    Args:
        groups: values of each task.
        equal: weight every task the same, rather than every document.

    Raises:
        ValueError: if a group has no values.
    """
    if not groups or not all(groups):
        raise ValueError("a group without values cannot be averaged")
    total = sum(map(len, groups))
    weights = [1 / len(groups) if equal else len(group) / total for group in groups]
    value = math.fsum(w * math.fsum(g) / len(g) for w, g in zip(weights, groups, strict=True))
    if all(v in (0, 1) for group in groups for v in group):
        size = 1 / math.fsum(w**2 / len(g) for w, g in zip(weights, groups, strict=True))
        return _wilson(min(1.0, value), size, total)
    squares = [
        (w * (normal_mean(g).high - math.fsum(g) / len(g))) ** 2
        for w, g in zip(weights, groups, strict=True)
    ]
    half = math.sqrt(math.fsum(squares))
    return Estimate(value, value - half, value + half, total)


def normal_mean(values: Sequence[float], z: float = Z) -> Estimate:
    """A mean plus and minus `z` standard errors; a single value has an interval of width 0."""
    n = len(values)
    center = math.fsum(values) / n
    squares = math.fsum((v - center) ** 2 for v in values)
    half = z * math.sqrt(squares / max(1, n - 1) / n)
    return Estimate(center, center - half, center + half, n)


def student_mean(values: Sequence[float]) -> dict[str, Any]:
    """A mean over a few independent draws from one normal distribution, with Student's interval.

    Returns:
        "mean" (None without values), "half_width" of the 95% interval (None for fewer than two
        values) and "n".
    """
    n = len(values)
    if n == 0:
        return {"mean": None, "half_width": None, "n": 0}
    center = math.fsum(values) / n
    if n == 1:
        return {"mean": center, "half_width": None, "n": 1}
    variance = math.fsum((v - center) ** 2 for v in values) / (n - 1)
    return {"mean": center, "half_width": t_quantile(n - 1) * math.sqrt(variance / n), "n": n}


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t for which Student's distribution has the mass `confidence` between -t and t.

    Found by bisection of the closed form for whole degrees of freedom (Abramowitz and Stegun,
    26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1.0
    while _mass_within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if _mass_within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def _mass_within(t: float, degrees: int) -> float:
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def paired(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of a - b over the same documents: difficulty that both share cancels.

    Raises:
        ValueError: if the lengths differ, or there are no documents.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if not differences:
        raise ValueError("no documents in common: nothing to compare")
    return normal_mean(differences)


def paired_proportions(a: Sequence[bool], b: Sequence[bool]) -> Estimate:
    """The difference of two proportions over the same documents, with Newcombe's interval (1998).

    Combines the Wilson intervals of both (his method 10), so the interval has a width even if no
    document tells the two apart. For rare events a normal interval would claim certainty that
    neither happens.

    Raises:
        ValueError: if the lengths differ, or there are no documents.
    """
    pairs = list(zip(map(bool, a), map(bool, b), strict=True))
    n = len(pairs)
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    first, second = proportion(both + only_a, n), proportion(both + only_b, n)
    product = float(both * neither - only_a * only_b)
    if product > 0:
        product = max(0.0, product - n / 2)
    spread = (both + only_a) * (neither + only_b) * (both + only_b) * (neither + only_a)
    correlation = product / math.sqrt(spread) if spread else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))

    value = first.value - second.value
    low = value - reach(first.value - first.low, second.high - second.value)
    high = value + reach(first.high - first.value, second.value - second.low)
    return Estimate(value, max(-1.0, low), min(1.0, high), n)


def signed_difference(plus: int, minus: int, n: int) -> Estimate:
    """(plus - minus) / n with Agresti and Min's interval (2005), half a document added to each."""
    value = (plus - minus) / n
    center = (plus - minus) / (n + 2)
    variance = ((plus + minus + 1) / (n + 2) - center**2) / (n + 2)
    half = Z * math.sqrt(variance)
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return Estimate(value, min(value, low), max(value, high), n)
