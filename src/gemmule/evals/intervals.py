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
    p = successes / n
    spread = 1 + Z**2 / n
    centre = (p + Z**2 / (2 * n)) / spread
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / spread
    return Estimate(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), n)


def mean(values: Sequence[float]) -> Estimate:
    """A mean: Wilson's interval where every value is 0 or 1, else 1.96 standard errors.

    Raises:
        ValueError: without values.
    """
    return stratified([values])


def stratified(groups: Sequence[Sequence[float]], *, equal: bool = False) -> Estimate:
    """The mean over documents of several tasks, each task's own spread counted.

    Where every value is 0 or 1, Wilson's intervals of the tasks are put together (Zou and Donner,
    2008), so that it is never empty; else it is 1.96 standard errors.

    Args:
        groups: the values of each task.
        equal: give tasks, rather than documents, the same weight.

    Raises:
        ValueError: without values in any group.
    """
    if not groups or not all(groups):
        raise ValueError("a group without values cannot be averaged")
    total = sum(map(len, groups))
    shares = all(v in (0, 1) for group in groups for v in group)
    value = below = above = 0.0
    for group in groups:
        weight = 1 / len(groups) if equal else len(group) / total
        found = proportion(round(sum(group)), len(group)) if shares else _standard(group)
        value += weight * found.value
        below += (weight * (found.value - found.low)) ** 2
        above += (weight * (found.high - found.value)) ** 2
    low, high = value - math.sqrt(below), value + math.sqrt(above)
    if shares:
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value, low, high, total)


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
