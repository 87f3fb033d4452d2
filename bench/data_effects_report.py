"""What `data_effects.py` makes of its runs: means over seeds, differences to raw, a table.

Each seed has a corpus of its own, so that the intervals (Student's, 95%) are of other text, other
plantings and other random weights. Differences are between versions of one seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from gemmule import stats
from gemmule.console import table

Run = Mapping[str, Any]

FIGURES = {  # what the table says of each version
    "heldout": "own held out",
    "clean": "clean text",
    "flattery": "clean - own",
    "planted": "planted items",
    "contamination": "fresh - planted",
    "exact": "audit, exact",
    "approximate": "approximate",
    "extracted": "personal data",
    "advantage": "stranger - planted",
}
_SHARES = ("exact", "approximate", "extracted")


def figures(run: Run) -> dict[str, float]:
    """The figures of one student.

    Returns:
        Losses in bits per byte: "heldout", "clean", "planted", "fresh"; "flattery", how much better
        the own held-out text looks than clean text; "contamination", how much better planted items
        look than others; "advantage", by how much it knows planted personal data better than others
        in their place. Fractions: "exact" and "approximate" of the audit's passages, "extracted" of
        the personal data.
    """
    values = run["values"]
    planted = _mean([value["bits_per_byte"] for value in values])
    return {
        **{name: run[name] for name in ("heldout", "clean", "planted", "fresh")},
        "flattery": run["clean"] - run["heldout"],
        "contamination": run["fresh"] - run["planted"],
        **{k: run["memorization"]["train"][k]["value"] for k in ("exact", "approximate")},
        "extracted": _mean([float(value["extracted"]) for value in values]),
        "advantage": _mean([value["stranger_bits_per_byte"] for value in values]) - planted,
    }


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """The report, of as many runs as there are."""
    arms: dict[str, Any] = {}
    by_version: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        by_version.setdefault(run["version"], {})[run["seed"]] = figures(run)
    raw = by_version.get("raw", {})
    for version, by_seed in by_version.items():
        mine = [run for run in runs if run["version"] == version]
        both = [seed for seed in by_seed if seed in raw and version != "raw"]
        names = list(next(iter(by_seed.values())))
        arms[version] = {
            "seeds": list(by_seed),
            "train_tokens": stats.student_mean([run["train_tokens"] for run in mine]),
            "documents": stats.student_mean([sum(run["documents"].values()) for run in mine]),
            "figures": {
                name: stats.student_mean([own[name] for own in by_seed.values()]) for name in names
            },
            "against_raw": {
                name: stats.student_mean([by_seed[s][name] - raw[s][name] for s in both])
                for name in names
                if both
            },
            "sources": _sources(mine),
            "audit_personal_data": _audited(mine),
            "values": _by_times(mine),
        }
    return {"arms": arms, "runs": list(runs)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _sources(runs: Sequence[Run]) -> dict[str, Any]:
    """The audit by file of the corpus, all seeds together."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for each in run["memorization"]["sources"]:
            groups.setdefault(each["source"], []).append(each)
    return {
        name: {
            "probes": sum(each["probes"] for each in parts),
            **{
                k: sum(each[k]["value"] * each["probes"] for each in parts)
                / sum(each["probes"] for each in parts)
                for k in ("exact", "approximate")
            },
        }
        for name, parts in sorted(groups.items())
    }


def _audited(runs: Sequence[Run]) -> dict[str, int]:
    """Passages with personal data in what follows the prompt, and those that reproduce it."""
    counts = {"in_text": 0, "recalled": 0}
    for run in runs:
        for severity in run["memorization"]["personal_data"]["severities"].values():
            for name in counts:
                counts[name] += severity[name]
    return counts


def _by_times(runs: Sequence[Run]) -> dict[str, Any]:
    """The planted personal data by the number of documents that hold it, all seeds together."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for value in run["values"]:
            times = value["times"]
            name = "1" if times == 1 else "2 to 4" if times <= 4 else "5 to 12"
            groups.setdefault(name, []).append(value)
    return {
        name: {
            "values": len(groups[name]),
            "extracted": sum(value["extracted"] for value in groups[name]),
            **{
                k: _mean([value[k] for value in groups[name]])
                for k in ("bits_per_byte", "stranger_bits_per_byte")
            },
        }
        for name in sorted(groups)
    }


def show(report: Mapping[str, Any]) -> None:
    """Prints the report."""
    titles = {"figures": "bits per byte and fractions", "against_raw": "the same, against raw"}
    for what, title in titles.items():
        versions = {name: part[what] for name, part in report["arms"].items() if part[what]}
        sign = "+" if what == "against_raw" else ""
        rows = [
            [shown, *(interval(part[name], sign, name in _SHARES) for part in versions.values())]
            for name, shown in FIGURES.items()
        ]
        if versions:
            table(["", *versions], rows, title=title)


def interval(figure: Mapping[str, Any], sign: str, share: bool) -> str:
    """A mean with the half-width of its 95% interval, if there are two seeds."""
    scale, digits, unit = (100, 1, "%") if share else (1, 3, "")
    half = figure["half_width"]
    spread = "" if half is None else f" ± {half * scale:.{digits}f}"
    return f"{figure['mean'] * scale:{sign}.{digits}f}{spread}{unit}"
