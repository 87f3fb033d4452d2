"""Where a figure, its interval and others stand on a row's own scale."""

import dataclasses
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Marks:
    """Places on a scale, percent from left to right.

    Attributes:
        low: the interval's lower end.
        value: the figure.
        width: of the interval.
        chance: what guessing gets, if anything.
        report: the report's models.
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
    """Of figures in percent, on a scale from 0 to 100, or from -100 where it goes both ways."""

    def place(figure: float) -> float:
        share = (figure + 100) / 2 if both_ways else figure
        return round(min(100.0, max(0.0, share)), 2)

    return Marks(
        low=place(low),
        value=place(value),
        width=round(place(high) - place(low), 2),
        chance=None if chance is None else place(chance),
        report=[place(figure) for figure in report],
    )
