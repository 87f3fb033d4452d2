"""The two plots of bench/posttrain_warp.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.report import svg

INK, INK_2, RULE, PAPER = "#1d2226", "#59636b", "#e1dcd2", "#fffefb"
COLORS = ("#c2500f", "#00756f", "#4b5fb0", "#8a6a00", "#8b3a7d", "#1d2226")
MARKERS = ("s", "o", "^", "D", "v", "P")
DISTANCE = "√KL(policy ‖ start)"
GOLD, PROXY = "gold reward, standard deviations", "proxy reward, standard deviations"


def draw_plots(report: Mapping[str, Any], folder: Path) -> None:
    """Writes over-optimization.svg and warp-front.svg.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        OutputError: when the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "over-optimization.svg", _over_optimization(report))
    files.write_text(folder / "warp-front.svg", _front(report))


def _over_optimization(report: Mapping[str, Any]) -> str:
    """Gold and proxy reward against distance: best of n above, policies below."""
    names, proxy = list(report["summary"]["places"]), report["settings"]["proxy"]
    best = [name for name in names if name.startswith("best of n")]
    dpo = [name for name in names if name.startswith("dpo")]
    policies = [name for name in names if name.startswith(("rloo", "jbond"))]
    with svg.figures("the benchmark's plots", INK, INK_2) as (canvas_of, _):
        canvas = canvas_of(figsize=(9.2, 7.6), facecolor=PAPER, layout="constrained")
        axes = canvas.subplots(2, 2)
        for column, key, label in ((0, "gold", GOLD), (1, "proxy", PROXY)):
            for i, name in enumerate(best):
                _line(axes[0][column], report, [name], key, i, name)
            _line(axes[1][column], report, [f"best of n, {proxy} pairs"], key, 5, "best of n")
            _line(axes[1][column], report, dpo, key, 0, "DPO, each beta")
            for i, name in enumerate(policies, 1):
                _line(axes[1][column], report, [name], key, i, _title(name))
            for row in (0, 1):
                _finish(axes[row][column], label)
        axes[0][0].legend(frameon=False)
        axes[1][0].legend(frameon=False, fontsize=8.5)
        return svg.text_of(canvas)


def _front(report: Mapping[str, Any]) -> str:
    """The front of gold reward against distance, and the angles between runs by layer."""
    settings = report["settings"]
    fixed = f"rloo {settings['ema_beta']:g}"
    with svg.figures("the benchmark's plots", INK, INK_2) as (canvas_of, _):
        canvas = canvas_of(figsize=(9.2, 4.4), facecolor=PAPER, layout="constrained")
        left, right = canvas.subplots(1, 2, width_ratios=(1.7, 1))
        ways = {
            fixed: "fixed anchor",
            "ema run 1": "moving anchor, one run",
            "ema, longer": "the same, longer",
            "slerp": "SLERP and LITI",
            "lerp": "LERP and LITI",
            "slerp, second": "second iteration",
        }
        for i, (name, title) in enumerate(ways.items()):
            _line(left, report, [name], "gold", i, title, dashed=name == "ema, longer")
        _finish(left, GOLD)
        left.legend(frameon=False, fontsize=9)
        for i, layers in enumerate(report["summary"]["angles"].values()):
            named = {name: figure for name, figure in layers.items() if figure["mean"] is not None}
            right.errorbar(
                [figure["mean"] for figure in named.values()],
                [y + 0.16 * i for y in range(len(named))],
                xerr=[figure["half_width"] or 0.0 for figure in named.values()],
                color=COLORS[i], marker=MARKERS[i], linestyle="", capsize=3, markersize=7,
                markeredgecolor=PAPER, label=f"iteration {i + 1}",
            )  # fmt: skip
            right.set_yticks(range(len(named)), list(named))
        right.invert_yaxis()
        right.axvline(90, color=INK_2, linewidth=1)
        right.set_xlabel("angle between the runs, degrees", labelpad=6)
        if report["summary"]["angles"]:
            right.legend(frameon=False, fontsize=9)
        right.set_facecolor(PAPER)
        svg.bare_axes(right, RULE)
        return svg.text_of(canvas)


def _line(
    axes: Any,
    report: Mapping[str, Any],
    names: Sequence[str],
    key: str,
    style: int,
    label: str,
    *,
    dashed: bool = False,
) -> None:
    """One way from the start through its places: means over seeds, and single seeds faintly."""
    result = report["summary"]
    color, marker = COLORS[style % len(COLORS)], MARKERS[style % len(MARKERS)]
    names = [name for name in names if name in result["places"]]
    if not names:
        return
    for seed in result["by_seed"]:
        places = [place for name in names for place in seed.get(name, ())]
        axes.plot([p["distance"] for p in places], [p[key] for p in places], color=color,
                  marker=marker, linestyle="", alpha=0.3, markersize=3.5)  # fmt: skip
    means = [place for name in names for place in result["places"][name]]
    count = means[0]["gold"]["n"]
    if count < len(result["by_seed"]):
        label += f" ({count} seed{'s' * (count > 1)})"
    ends = sorted((p["distance"]["mean"], p[key]["mean"]) for p in means)
    x, y = zip((0.0, 0.0), *ends, strict=True)
    axes.plot(
        x, y, color=color, marker=marker, markevery=range(1, len(x)), markersize=6.5,
        markeredgecolor=PAPER, linestyle="--" if dashed else "-", linewidth=1.8, label=label,
    )  # fmt: skip


def _title(name: str) -> str:
    """The name of a policy in the legend: "rloo 0.2" is "RLOO, beta 0.2"."""
    if name == "jbond":
        return "J-BOND"
    return name.replace("rloo ", "RLOO, beta ")


def _finish(axes: Any, label: str) -> None:
    axes.axhline(0, color=INK_2, linewidth=1)
    axes.set_xlim(left=0)
    axes.set_xlabel(DISTANCE, labelpad=6)
    axes.set_ylabel(label)
    axes.set_facecolor(PAPER)
    svg.bare_axes(axes, RULE)
