"""Plot of a sweep: the metric on the left, differences within a seed on the right."""

from collections.abc import Mapping
from typing import Any

from gemmule.ablate.results import METRICS
from gemmule.report import svg

# The card's colors on paper; marker and line tell the arms apart without them.
INK, INK_2, RULE, PAPER = "#1d2226", "#59636b", "#e1dcd2", "#fffefb"
BASELINE, OTHER = "#c2500f", "#00756f"


def draw(results: Mapping[str, Any]) -> str | None:
    """The plot as an SVG file's text, the same for the same results; None if there is nothing yet.

    Groups with a place on an axis become lines, others rows. Points are means with their 95%
    intervals, faint points single seeds.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    compared = {arm for d in results["differences"] for arm in (d["arm"], d["baseline"][1])}
    rows = [
        row for row in results["summary"] if results["metric"] in row and row["arm"] in compared
    ]
    if not rows:
        return None
    with svg.figures("the sweep's plot", INK, INK_2) as (canvas_of, _):
        ladder = all(row["x"] is not None for row in rows)
        height = 3.9 if ladder else 1.5 + 0.42 * len(rows)
        canvas = canvas_of(figsize=(9.2, height), facecolor=PAPER, layout="constrained")
        left, right = canvas.subplots(1, 2)
        (_ladder if ladder else _rows)(left, right, rows, results)
        for axes in (left, right):
            axes.set_facecolor(PAPER)
            svg.bare_axes(axes, RULE)
        return svg.text_of(canvas)


def _shown_metric(results: Mapping[str, Any]) -> tuple[str, str]:
    """Key of what the left side shows, and its label: the report's tables give perplexities."""
    if results["metric"] == "nats_per_token":
        return "perplexity", "held-out perplexity"
    _, name, unit = METRICS[results["metric"]]
    return results["metric"], f"{name}, {unit}"


def _ladder(left: Any, right: Any, rows: list[Any], results: Mapping[str, Any]) -> None:
    """Against a numeric axis, on a logarithmic scale; a line for each arm that has several."""
    key, label = _shown_metric(results)
    baselines = {d["baseline"][1] for d in results["differences"]}
    single = len({row["arm"] for row in rows}) == len(rows)  # each place an arm of its own
    series: dict[str, list[Any]] = {}
    for row in rows:
        series.setdefault("" if single else row["arm"], []).append(row)
    for i, (arm, points) in enumerate(series.items()):
        aside = 1.0 + 0.02 * (i - (len(series) - 1) / 2)  # so that intervals do not hide each other
        first = arm in baselines or single
        style = {"color": BASELINE if first else OTHER, "marker": "s" if first else "o"}
        line = "--" if first and not single else "-"
        for point in points:
            many = [point["x"] * aside] * len(point[key]["values"])
            left.plot(many, point[key]["values"], **style, linestyle="", alpha=0.35, markersize=4)
        _with_intervals(
            left,
            [p["x"] * aside for p in points],
            [p[key] for p in points],
            style,
            line,
            arm or None,
        )
    x_of = {(row["group"], row["arm"]): row["x"] for row in rows}
    compared = [
        d for d in results["differences"]
        if d["mean"] is not None and (d["group"], d["arm"]) in x_of
    ]  # fmt: skip
    at = [x_of[d["group"], d["arm"]] for d in compared]
    for x, d in zip(at, compared, strict=True):
        values = list(d["by_seed"].values())
        right.plot([x] * len(values), values, color=OTHER, marker="o", linestyle="", alpha=0.35,
                   markersize=4)  # fmt: skip
    _with_intervals(right, at, compared, {"color": OTHER, "marker": "o"}, "-", None)
    right.axhline(0, color=INK_2, linewidth=1)
    ticks = sorted({row["x"] for row in rows})
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [tick(x) for x in ticks])
        axes.minorticks_off()
        axes.set_xlabel(results["axis"], labelpad=6)
    right.set_xlim(left.get_xlim())
    if key == "perplexity":  # an interval may reach where no perplexity is
        left.set_ylim(bottom=max(0.0, left.get_ylim()[0]))
    left.set_ylabel(label)
    right.set_ylabel(_difference_label(results))
    if len(series) > 1:
        left.legend(frameon=False)


def _rows(left: Any, right: Any, rows: list[Any], results: Mapping[str, Any]) -> None:
    """A row for each arm, from the top down."""
    key, label = _shown_metric(results)
    baselines = {tuple(d["baseline"]) for d in results["differences"]}
    gains = {(d["group"], d["arm"]): d for d in results["differences"]}
    for y, row in enumerate(rows):
        place = (row["group"], row["arm"])
        first = place in baselines
        style = {"color": BASELINE if first else OTHER, "marker": "s" if first else "o"}
        _across(left, y, row[key], row[key]["values"], style)
        gain = gains.get(place)
        if first:
            right.plot([0], [y], **style, linestyle="", markersize=7)
        elif gain is not None and gain["mean"] is not None:
            _across(right, y, gain, list(gain["by_seed"].values()), style)
    names = [_named(row) for row in rows]
    left.set_yticks(range(len(rows)), names)
    right.set_yticks(range(len(rows)), [""] * len(rows))
    for axes in (left, right):
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=5)
    right.axvline(0, color=INK_2, linewidth=1)
    left.set_xlabel(label, labelpad=6)
    right.set_xlabel(_difference_label(results), labelpad=6)


def _with_intervals(
    axes: Any, x: list[float], figures: list[Any], style: Any, line: str, label: str | None
) -> None:
    axes.errorbar(
        x,
        [figure["mean"] for figure in figures],
        yerr=[figure["half_width"] or 0.0 for figure in figures],
        **style,
        linestyle=line,
        linewidth=1.9,
        markersize=7,
        markeredgecolor=PAPER,
        capsize=3,
        label=label,
    )


def _across(axes: Any, y: int, figure: Any, values: list[float], style: Any) -> None:
    axes.plot(values, [y] * len(values), **style, linestyle="", alpha=0.35, markersize=4)
    axes.errorbar(
        [figure["mean"]], [y], xerr=[figure["half_width"] or 0.0], **style, linestyle="",
        markersize=7, markeredgecolor=PAPER, capsize=3,
    )  # fmt: skip


def _difference_label(results: Mapping[str, Any]) -> str:
    baselines = {d["baseline"][1] for d in results["differences"]}
    than = f" than {baselines.pop()}" if len(baselines) == 1 else ""
    return f"better{than} by, {METRICS[results['metric']][2]}"


def tick(x: float) -> str:
    """An axis label: 250, 104k, 1.5M."""
    if x >= 1e6:
        return f"{x / 1e6:.3g}M"
    return f"{x / 1e3:.3g}k" if x >= 1e4 else f"{x:g}"


def _named(row: Any) -> str:
    name = " ".join(part for part in (row["group"], row["arm"]) if part)
    stored = row["bytes_per_token"]
    return name if stored is None else f"{name}, {stored:.0f} B/token"
