"""95% intervals: how far a score would move with other documents of the same kind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval.

    Attributes:
        value: the figure.
        low: the interval's lower end.
        high: its upper end.
        n: documents behind it.
    """

    value: float
    low: float
    high: float
    n: int

    def json(self) -> dict[str, float | int]:
        """As it is kept in result files."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def proportion(successes: int, n: int) -> Estimate:
    """A share with Wilson's score interval (1927), which is never empty, even at 0 of n.

    Raises:
        ValueError: unless 0 <= successes <= n and n > 0.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is no share")
    return _wilson(successes / n, n, n)


def _wilson(p: float, size: float, n: int) -> Estimate:
    """Of a share p; `size` is of as many documents of one weight as would make it as sure."""
    spread = 1 + Z**2 / size
    centre = (p + Z**2 / (2 * size)) / spread
    half = Z * math.sqrt(p * (1 - p) / size + Z**2 / (4 * size**2)) / spread
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def mean(values: Sequence[float]) -> Estimate:
    """A mean: Wilson's interval where every value is 0 or 1, else 1.96 standard errors.

    Raises:
        ValueError: without values.
    """
    return stratified([values])


def stratified(groups: Sequence[Sequence[float]], *, equal: bool = False) -> Estimate:
    """The mean over documents of several tasks.

    Where every value is 0 or 1 it has Wilson's interval, of as many documents as would make the
    mean as sure: never empty, and rather too wide where tasks differ. Else it is 1.96 standard
    errors, each task's own spread counted.

    Args:
        groups: the values of each task.
        equal: give tasks, rather than documents, the same weight.

    Raises:
        ValueError: without values in any group.
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
        (w * (_standard(g).high - math.fsum(g) / len(g))) ** 2
        for w, g in zip(weights, groups, strict=True)
    ]
    half = math.sqrt(math.fsum(squares))
    return Estimate(value, value - half, value + half, total)


def _standard(values: Sequence[float]) -> Estimate:
    n = len(values)
    centre = math.fsum(values) / n
    squares = math.fsum((v - centre) ** 2 for v in values)
    half = Z * math.sqrt(squares / max(1, n - 1) / n)
    return Estimate(centre, centre - half, centre + half, n)


def paired(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of a - b over the same documents: what both find hard or easy cancels.

    Raises:
        ValueError: when the two are not of one length, or empty.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    if not differences:
        raise ValueError("no documents in common: nothing to compare")
    return _standard(differences)


def paired_proportions(a: Sequence[bool], b: Sequence[bool]) -> Estimate:
    """The difference of two shares over the same documents, with Newcombe's interval (1998).

    It combines Wilson's intervals of both (his method 10), so that it is not empty where no
    document tells the two apart: of rare events a normal interval would claim to know that neither
    happens.

    Raises:
        ValueError: when the two are not of one length, or empty.
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
