"""Plot of the size factors: loss from scratch against parameters, and each distilled model's."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.ablate.plots import BASELINE, INK, INK_2, OTHER, PAPER, RULE, tick
from gemmule.report import svg

_COUNT = "non_embedding_parameters"
_MARKERS = "osD^vP"
_DASHES = ("-", "--", "-.", ":")


def draw_factors(results: Mapping[str, Any]) -> str | None:
    """The plot as an SVG file's text, a side for each basis; None if there is nothing to draw.

    A distilled model is a level line from its own size to where the models from scratch reach its
    loss, or with an open end to the largest of them.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    entries = [entry for entry in results["size_factors"] if entry["factor"]["n"]]
    sides = list(dict.fromkeys(entry["basis"] for entry in entries))
    if not sides:
        return None
    with svg.figures("the size factors' plot", INK, INK_2) as (canvas_of, _):
        canvas = canvas_of(figsize=(9.2, 4.2), facecolor=PAPER, layout="constrained")
        grid = canvas.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)
        for axes, basis in zip(grid.flat, sides, strict=True):
            _side(axes, basis, [entry for entry in entries if entry["basis"] == basis])
        grid.flat[0].set_ylabel("held-out loss, nats/token")
        return svg.text_of(canvas)


def _side(axes: Any, basis: str, entries: Sequence[Mapping[str, Any]]) -> None:
    axes.set_facecolor(PAPER)
    svg.bare_axes(axes, RULE)
    axes.set_title(f"at {basis}", loc="left", fontsize=11, color=INK)
    curves: dict[tuple[Any, ...], Sequence[Mapping[str, Any]]] = {}
    for entry in entries:  # at equal tokens, all students have the same curve
        curves.setdefault(tuple((r["group"], r["arm"]) for r in entry["rungs"]), entry["rungs"])
    for i, rungs in enumerate(curves.values()):
        losses = [rung["nats_per_token"] for rung in rungs]
        name = "from scratch" if len(curves) == 1 else f"from scratch, {entries[i]['group']}"
        axes.errorbar(
            [rung[_COUNT] for rung in rungs],
            [loss["mean"] for loss in losses],
            yerr=[loss["half_width"] or 0.0 for loss in losses],
            color=BASELINE, marker="s", linestyle=_DASHES[i % len(_DASHES)], linewidth=1.6,
            markersize=6, markeredgecolor=PAPER, capsize=3, label=name,
        )  # fmt: skip
    for i, entry in enumerate(entries):
        _student(axes, entry, _MARKERS[i % len(_MARKERS)])
    sizes = sorted({rung[_COUNT] for entry in entries for rung in entry["rungs"]})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [tick(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("non-embedding parameters", labelpad=6)
    axes.legend(frameon=False, fontsize=8)


def _student(axes: Any, entry: Mapping[str, Any], marker: str) -> None:
    size, loss, result = entry[_COUNT], entry["nats_per_token"]["mean"], entry["factor"]
    axes.plot(
        [size], [loss], color=OTHER, marker=marker, linestyle="", markersize=7,
        markeredgecolor=PAPER, label=f"{entry['group']} {entry['arm']}",
    )  # fmt: skip
    if result["value"] is None:
        return
    end = size * result["value"]
    axes.plot([size, end], [loss, loss], color=OTHER, linewidth=1.4)
    closing = {"more than": ">", "at most": "<"}.get(result["bound"], "|")
    axes.plot([end], [loss], color=OTHER, marker=closing, linestyle="", markersize=8)
