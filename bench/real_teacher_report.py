"""What `real_teacher.py` makes of its runs: comparisons with intervals, a table, a plot.

Losses are held-out bits per byte. A student's best epoch is the one with the lowest validation
loss; "scratch" at its best is the best of all epochs of all runs from the text alone with that seed
and shape, each with a schedule of its own. Differences are between students of one seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gemmule import stats
from gemmule.console import key_values, table
from gemmule.report import svg

Run = Mapping[str, Any]
Point = Mapping[str, Any]

SHARED_BY = 3  # students that share a recording, in the figures of shared cost
INK, INK_2, RULE, PAPER = "#1d2226", "#59636b", "#e1dcd2", "#fffefb"
SCRATCH, DISTILLED = "#c2500f", "#00756f"


def summarize(runs: Sequence[Run], teachers: Mapping[str, Any]) -> dict[str, Any]:
    """The report's figures, of as many runs as there are."""
    arms: dict[str, dict[str, Any]] = {}
    for run in runs:
        arms.setdefault(run["arm"], {"runs": []})["runs"].append(run)
    for name, arm in arms.items():
        mine = arm.pop("runs")
        best = [best_point(run["points"]) for run in mine]
        last = [run["points"][-1] for run in mine]
        arms[name] = {
            **{k: mine[0][k] for k in ("source", "preset", "alpha", "teacher", "epochs")},
            "parameters": mine[0]["parameters"],
            "seeds": [run["seed"] for run in mine],
            "last": stats.student_mean([point["heldout"] for point in last]),
            "best": stats.student_mean([point["heldout"] for point in best]),
            "best_epochs": [point["epoch"] for point in best],
            "tokens": last[0]["tokens"],
            "training_flops": last[0]["flops"],
            "teacher_flops": _teacher_flops(mine[0], teachers),
            "training_seconds": sum(point["seconds"] for point in last) / len(last),
        }
    return {
        "teachers": teachers,
        "arms": arms,
        "comparisons": {
            name: compare([run for run in runs if run["arm"] == name], runs, arm["teacher_flops"])
            for name, arm in arms.items()
            if arm["source"] != "text"
        },
        "runs": runs,
    }


def best_point(points: Sequence[Point]) -> Point:
    """The epoch with the lowest validation loss."""
    return min(points, key=lambda point: point["validation"])


def compare(taught: Sequence[Run], runs: Sequence[Run], teacher_flops: float) -> dict[str, Any]:
    """How much better the students of an arm are than those from the text alone, by seed.

    Args:
        taught: the students.
        runs: those of all arms.
        teacher_flops: operations that the teacher was run for before the student.

    Returns:
        For "equal_tokens" (after as many epochs of a schedule of that length), "best_epoch" and
        "equal_compute" (the best that takes at most the student's operations and the teacher's; its
        key "scratch_flops" is the compute of the longest run there was): the differences by seed,
        positive where the student is better, with their mean and 95% interval. What no run from
        scratch can be compared with is left out.
    """
    differences: dict[str, dict[str, float]] = {}
    tried = 0.0
    for run in taught:
        others = [
            r for r in runs
            if (r["source"], r["preset"], r["seed"]) == ("text", run["preset"], run["seed"])
        ]  # fmt: skip
        points = [point for other in others for point in other["points"]]
        if not points:
            continue
        last, tried = run["points"][-1], max(tried, *(point["flops"] for point in points))
        affordable = [p for p in points if p["flops"] <= last["flops"] + teacher_flops]
        sides = {
            "best_epoch": (best_point(points), best_point(run["points"])),
            "equal_compute": (best_point(affordable), last),
        }
        same = [other for other in others if other["epochs"] == run["epochs"]]
        if same:
            sides["equal_tokens"] = (same[0]["points"][-1], last)
        for what, (theirs, ours) in sides.items():
            by_seed = differences.setdefault(what, {})
            by_seed[str(run["seed"])] = theirs["heldout"] - ours["heldout"]
    result: dict[str, Any] = {
        what: {"by_seed": by_seed, **stats.student_mean(list(by_seed.values()))}
        for what, by_seed in differences.items()
    }
    if "equal_compute" in result:
        result["equal_compute"]["scratch_flops"] = tried
    return result


def _teacher_flops(run: Run, teachers: Mapping[str, Any]) -> float:
    """Operations that a teacher was run for before a student of stored targets."""
    if run["source"] != "stored" or run["teacher"] not in teachers:
        return 0.0  # online, they are operations of the training
    teacher = teachers[run["teacher"]]
    adapting = teacher.get("adapting", {}).get("flops", 0.0)
    return float(teacher["recording"]["flops"] + adapting)


def show(report: Mapping[str, Any]) -> None:
    """Prints the report."""
    for name, teacher in report["teachers"].items():
        recording = teacher["recording"]
        key_values(
            [
                ["held-out loss", f"{teacher['heldout']['bits_per_byte']:.4f} bits/byte"],
                ["targets", f"{recording['targets']} of {recording['tokens']:,} tokens"],
                ["size", f"{recording['bytes_per_token']:.1f} bytes per token"],
                ["rate", f"{recording['tokens_per_second']:,.0f} tokens/s"],
                ["compute", f"{recording['flops'] / 1e12:,.1f} TFLOP"],
            ],
            title=f"teacher, {name}",
        )
    rows = []
    for name, arm in report["arms"].items():
        compared = report["comparisons"].get(name, {})
        rows.append(
            [
                name,
                str(len(arm["seeds"])),
                interval(arm["last"]),
                interval(arm["best"]),
                ", ".join(map(str, arm["best_epochs"])),
                *(
                    interval(compared[what], "+") if what in compared else ""
                    for what in ("equal_tokens", "best_epoch", "equal_compute")
                ),
                f"{arm['training_flops'] / 1e12:.1f}",
                f"{arm['teacher_flops'] / 1e12:.1f}",
                f"{arm['training_seconds']:.0f}",
            ]
        )
    table(
        ["", "seeds", "last epoch", "best epoch", "which", "at equal tokens", "at best",
         "at equal compute", "TFLOP", "+ teacher's", "s"],
        rows,
        title="held-out bits per byte, and how much better than from scratch",
    )  # fmt: skip


def interval(figure: Mapping[str, Any], sign: str = "") -> str:
    """A mean with the half-width of its 95% interval, if there are two seeds."""
    half = "" if figure["half_width"] is None else f" ± {figure['half_width']:.4f}"
    return f"{figure['mean']:{sign}.4f}{half}"


def draw(report: Mapping[str, Any]) -> str:
    """Held-out loss by epoch and by compute as the text of an SVG file; faint lines are seeds.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    with svg.figures("the plot", INK, INK_2) as (canvas_of, _):
        canvas = canvas_of(figsize=(9.2, 4.2), facecolor=PAPER, layout="constrained")
        left, right = canvas.subplots(1, 2, sharey=True)
        arms = {  # the table has the others
            name: arm
            for name, arm in report["arms"].items()
            if arm["preset"] == "1m" and not arm["alpha"] and arm["source"] != "online"
        }
        longest = max((a["epochs"] for a in arms.values() if a["source"] == "stored"), default=0)
        for name, arm in arms.items():
            mine = [run["points"] for run in report["runs"] if run["arm"] == name]
            before = arm["teacher_flops"]
            below = arm["source"] == "stored" and arm["epochs"] < longest  # that one goes on
            epochs = [p["epoch"] for p in mine[0]]
            flops = [(p["flops"] + before) / 1e12 for p in mine[0]]
            _curve(left, name, arm, mine, epochs, below=below)
            _curve(right, name, arm, mine, flops, below=below)
            if before:
                shared = [(p["flops"] + before / SHARED_BY) / 1e12 for p in mine[0]]
                _curve(right, f"{name}, recording shared", arm, mine, shared, "--", below=True)
        for name, teacher in report["teachers"].items():
            loss = teacher["heldout"]["bits_per_byte"]
            for axes in (left, right):
                axes.axhline(loss, color=INK_2, linewidth=1, linestyle=":")
            left.annotate(
                "the teacher" if name == "plain" else "the teacher, adapted", (0, loss),
                xycoords=("axes fraction", "data"), xytext=(4, 4), textcoords="offset points",
                color=INK_2, fontsize=9,
            )  # fmt: skip
        left.set_ylabel("held-out loss, bits per byte")
        left.set_xlabel("epochs of the text")
        left.xaxis.get_major_locator().set_params(integer=True)
        right.set_xlabel(
            f"TFLOP with the teacher's recording\n(dashed: shared by {SHARED_BY} students)"
        )
        for axes in (left, right):
            axes.set_facecolor(PAPER)
            svg.bare_axes(axes, RULE)
        return svg.text_of(canvas)


def _curve(
    axes: Any,
    label: str,
    arm: Mapping[str, Any],
    seeds: Sequence[Sequence[Point]],
    x: Sequence[float],
    line: str = "-",
    *,
    below: bool = False,
) -> None:
    """The mean over seeds, named at its end or below it, and faintly each seed."""
    scratch = arm["source"] == "text"
    style = {"color": SCRATCH if scratch else DISTILLED, "marker": "s" if scratch else "o"}
    losses = [[point["heldout"] for point in points] for points in seeds]
    for values in losses:
        axes.plot(x, values, **style, linestyle="", alpha=0.3, markersize=3)
    means = [sum(values) / len(values) for values in zip(*losses, strict=True)]
    axes.plot(x, means, **style, linestyle=line, linewidth=1.7, markersize=5, markeredgecolor=PAPER)
    axes.annotate(
        label, (x[-1], means[-1]), xytext=(0, -14) if below else (6, -3),
        textcoords="offset points", ha="right" if below else "left",
        color=style["color"], fontsize=9,
    )  # fmt: skip
