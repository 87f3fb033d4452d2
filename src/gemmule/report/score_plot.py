"""Scores against parameters, a small panel a benchmark, as inline SVG."""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from gemmule.report.figures import count, tick
from gemmule.report.plots import CARD, COLOURS, INK, NOTHING, RULE, inline, styled

_COLUMNS = 3
_KINDS = {"own": ("distilled", "o"), "other": ("scratch", "s"), "published": ("teacher", "D")}


@dataclasses.dataclass(frozen=True)
class Point:
    """A model's score.

    Attributes:
        name: of the model.
        parameters: all of them.
        value: the score, 0 to 1.
        low: lower end of its interval, None where none is known.
        high: its upper end.
        kind: "own", "other" or "published": colour and marker.
    """

    name: str
    parameters: float
    value: float
    low: float | None
    high: float | None
    kind: str


@dataclasses.dataclass(frozen=True)
class Panel:
    """One benchmark: its models, and what guessing gets."""

    title: str
    points: Sequence[Point]
    chance: float | None


def draw(panels: Sequence[Panel]) -> tuple[str, str]:
    """The svg element, and what it shows in words.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    rows = -(-len(panels) // _COLUMNS)
    with styled() as (canvas_of, ticker):
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
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata=NOTHING, transparent=True)
    return inline(out.getvalue(), "scores"), _in_words(panels)


def _panel(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=11, color=INK)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.grid(color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(length=0, which="both", pad=4)
    if panel.chance is not None:
        axes.axhline(100 * panel.chance, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    for point in panel.points:
        role, marker = _KINDS[point.kind]
        colour = COLOURS[role]
        if point.low is not None and point.high is not None:
            axes.plot(
                [point.parameters] * 2, [100 * point.low, 100 * point.high],
                color=colour, linewidth=2.4, solid_capstyle="round",
            )  # fmt: skip
        axes.plot(
            [point.parameters], [100 * point.value], color=colour, marker=marker, markersize=7,
            markeredgecolor=CARD, markeredgewidth=1.0, zorder=5,
        )  # fmt: skip


def _in_words(panels: Sequence[Panel]) -> str:
    said = [
        f"{panel.title}: "
        + ", ".join(f"{p.name} {100 * p.value:.1f} at {count(p.parameters)}" for p in panel.points)
        for panel in panels
    ]
    return "Scores in percent against parameters. " + "; ".join(said) + "."
