"""Loss curves as inline SVG in the page's colors, the same for the same runs."""

import dataclasses
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from gemmule.report import svg
from gemmule.report.run_files import Point, Run
from gemmule.report.values import count, flops, tick

# Drawn in these colors, which are then replaced by the page's CSS variables: one picture
# serves the light and the dark scheme.
_VARIABLES = {
    "#010101": "var(--ink-2)",
    "#020202": "var(--rule)",
    "#030303": "var(--teacher)",
    "#040404": "var(--scratch)",
    "#050505": "var(--distilled)",
    "#060606": "var(--card)",
}
INK, RULE, CARD = "#010101", "#020202", "#060606"
COLORS = {"teacher": "#030303", "scratch": "#040404", "distilled": "#050505"}


def page_figures() -> AbstractContextManager[tuple[Any, Any]]:
    """Matplotlib's Figure class and ticker module, in the page's colors.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    return svg.figures("the card's plots", INK, INK, path__simplify=False)


@dataclasses.dataclass(frozen=True)
class Plot:
    """An svg element, a description for readers who cannot see it, and its caption."""

    svg: str
    description: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One run in a plot; dash pattern and marker tell it apart without color.

    Attributes:
        role: "teacher", "scratch" or "distilled": also the CSS class of the legend's swatch.
        dash: SVG dash pattern in units of the line's width, "" for a solid line.
        marker: matplotlib marker of the last point.
    """

    name: str
    run: Run
    role: str
    dash: str
    marker: str

    @property
    def dasharray(self) -> str:
        """The dash pattern for a legend drawn 2 units wide."""
        return " ".join(str(2 * float(part)) for part in self.dash.split())


def curves(lines: Sequence[Line], against: str) -> tuple[str, str] | None:
    """Draws validation loss against "tokens" or "compute".

    The training loss is drawn faintly behind, except for distilled runs, whose training loss is
    another quantity.

    Returns:
        The svg element and a description in words; None if no run has the values.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    drawn = [(line, scale) for line in lines if (scale := _scale(line.run, against))]
    drawn = [
        (line, scale) for line, scale in drawn if any(p.tokens > 0 for p in line.run.evaluations)
    ]
    if not drawn:
        return None
    with page_figures() as (canvas_of, ticker):
        canvas = canvas_of(figsize=(5.4, 3.7))
        axes = canvas.add_axes((0.1, 0.155, 0.845, 0.82))
        for line, scale in drawn:
            _draw(axes, line, scale)
        low, high = _window([line.run.evaluations for line, _ in drawn])
        axes.set_ylim(low - 0.06 * (high - low), high)
        compute = against == "compute"
        if compute:
            axes.set_xscale("log")
            axes.set_xlim(left=0.7 * min(_enters(line.run, high) * scale for line, scale in drawn))
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3), numticks=9))
            axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        else:
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: tick(x)))
        unit = "training compute, FLOP (log scale)" if compute else "training tokens"
        axes.set_xlabel(unit, labelpad=6)
        svg.bare_axes(axes, RULE)
        text = svg.text_of(canvas, transparent=True)
    return inline(text, against), _description(drawn, against)


def _window(curves: Sequence[Sequence[Point]]) -> tuple[float, float]:
    """Limits of the loss axis; the steep first fifth of each run may lie above them."""
    low = min(point.loss for curve in curves for point in curve)
    later = [p.loss for c in curves for p in c if p.tokens >= 0.2 * c[-1].tokens]
    return low, max(*later, low + 0.1)


def _enters(run: Run, high: float) -> float:
    """Number of tokens at which a run's curve is first below `high`."""
    points = [point for point in run.evaluations if point.tokens > 0]
    inside = [point.tokens for point in points if point.loss <= high]
    return inside[0] if inside else points[-1].tokens


def _scale(run: Run, against: str) -> float | None:
    return 1.0 if against == "tokens" else run.flops_per_token


def _draw(axes: Any, line: Line, scale: float) -> None:
    color = COLORS[line.role]
    dash: Any = "-"
    if line.dash:
        dash = (0, tuple(float(part) for part in line.dash.split()))
    positive = [point for point in line.run.evaluations if point.tokens > 0]
    if not line.run.distilled:
        thin = _thinned([point for point in line.run.training if point.tokens > 0])
        axes.plot(
            [p.tokens * scale for p in thin],
            [p.loss for p in thin],
            color=color,
            alpha=0.28,
            linewidth=0.9,
        )
    axes.plot(
        [p.tokens * scale for p in positive],
        [p.loss for p in positive],
        color=color,
        linewidth=2.4 if line.role == "distilled" else 1.9,
        linestyle=dash,
        solid_capstyle="round",
    )
    if positive:
        axes.plot(
            [positive[-1].tokens * scale],
            [positive[-1].loss],
            color=color,
            marker=line.marker,
            markersize=7.5,
            markeredgecolor=CARD,
            markeredgewidth=1.2,
            zorder=5,
        )


def _thinned(points: Sequence[Point], maximum: int = 160) -> list[Point]:
    """At most `maximum` points: means over equal groups of neighbors."""
    size = -(-len(points) // maximum) if points else 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        Point(sum(p.tokens for p in g) / len(g), sum(p.loss for p in g) / len(g)) for g in groups
    ]


def _description(drawn: Sequence[tuple[Line, float]], against: str) -> str:
    ends = []
    for line, scale in drawn:
        last = line.run.evaluations[-1]
        at = count(last.tokens) + " tokens" if against == "tokens" else flops(last.tokens * scale)
        ends.append(f"{line.name} ends at {last.loss:.3f} nats per token after {at}")
    unit = "training tokens" if against == "tokens" else "training compute"
    return f"Line chart of validation loss against {unit}. " + "; ".join(ends) + "."


def inline(text: str, prefix: str) -> str:
    """The svg element alone: scalable, without metadata, with ids that are unique on the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.S)
    head, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    if box is None:  # matplotlib always writes one
        raise RuntimeError("matplotlib wrote an svg without a viewBox")
    text = f'<svg {box.group()} aria-hidden="true" focusable="false">{rest}'
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text).replace("xlink:href", "href")
    text = text.replace("url(#", f"url(#{prefix}-")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text.strip()
