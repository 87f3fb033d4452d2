"""Positions of a score, its interval and other models' scores on a row's own scale."""

import dataclasses
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Marks:
    """Positions on a scale, in percent from the left.

    Attributes:
        low: lower end of the interval.
        value: the score.
        width: width of the interval.
        chance: chance level; None if there is none.
        report: scores of the report's models.
    """

    low: float
    value: float
    width: float
    chance: float | None
    report: Sequence[float]


def marks(
    value: float,
    low: float,
    high: float,
    chance: float | None,
    report: Iterable[float],
    *,
    both_ways: bool = False,
) -> Marks:
    """Positions of scores in percent, on a scale from 0 to 100, or from -100 if `both_ways`."""

    def place(score: float) -> float:
        percent = (score + 100) / 2 if both_ways else score
        return round(min(100.0, max(0.0, percent)), 2)

    return Marks(
        low=place(low),
        value=place(value),
        width=round(place(high) - place(low), 2),
        chance=None if chance is None else place(chance),
        report=[place(score) for score in report],
    )
