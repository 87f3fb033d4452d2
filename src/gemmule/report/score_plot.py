"""Scores against parameters, one small panel per benchmark, as inline SVG."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from gemmule.report import svg
from gemmule.report.plots import CARD, COLORS, INK, RULE, inline, page_figures
from gemmule.report.values import count, tick

_COLUMNS = 3
_KINDS = {"own": ("distilled", "o"), "other": ("scratch", "s"), "published": ("teacher", "D")}


@dataclasses.dataclass(frozen=True)
class ScorePoint:
    """A model's score on one benchmark.

    Attributes:
        name: the model's name.
        parameters: number of parameters.
        value: the score, 0 to 1.
        low: lower end of its interval; None if unknown.
        high: upper end of its interval; None if unknown.
        kind: "own", "other" or "published": decides color and marker.
    """

    name: str
    parameters: float
    value: float
    low: float | None
    high: float | None
    kind: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One benchmark: its models' scores, and chance."""

    title: str
    points: Sequence[ScorePoint]
    chance: float | None


def draw(panels: Sequence[Panel]) -> tuple[str, str]:
    """The svg element, and a description in words.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    rows = -(-len(panels) // _COLUMNS)
    with page_figures() as (canvas_of, ticker):
        canvas = canvas_of(figsize=(10.8, 0.35 + 2.15 * rows))
        grid = canvas.subplots(rows, _COLUMNS, squeeze=False, sharex=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            _panel(axes, panels[place])
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(numticks=7))
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
            axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: tick(x)))
            axes.tick_params(labelbottom=place + _COLUMNS >= len(panels))
        canvas.subplots_adjust(
            left=0.045, right=0.985, top=1 - 0.32 / (0.35 + 2.15 * rows),
            bottom=0.3 / (0.35 + 2.15 * rows), hspace=0.28, wspace=0.14,
        )  # fmt: skip
        text = svg.text_of(canvas, transparent=True)
    return inline(text, "scores"), _description(panels)


def _panel(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=11, color=INK)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100])
    svg.bare_axes(axes, RULE, pad=4)
    if panel.chance is not None:
        axes.axhline(100 * panel.chance, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    for point in panel.points:
        role, marker = _KINDS[point.kind]
        color = COLORS[role]
        if point.low is not None and point.high is not None:
            axes.plot(
                [point.parameters] * 2, [100 * point.low, 100 * point.high],
                color=color, linewidth=2.4, solid_capstyle="round",
            )  # fmt: skip
        axes.plot(
            [point.parameters], [100 * point.value], color=color, marker=marker, markersize=7,
            markeredgecolor=CARD, markeredgewidth=1.0, zorder=5,
        )  # fmt: skip


def _description(panels: Sequence[Panel]) -> str:
    parts = [
        f"{panel.title}: "
        + ", ".join(f"{p.name} {100 * p.value:.1f} at {count(p.parameters)}" for p in panel.points)
        for panel in panels
    ]
    return "Scores in percent against parameters. " + "; ".join(parts) + "."
