"""The page of a recipe: its funnel, lengths, languages, sources, and what fell out, as one file."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from gemmule.report.card import clean

_TEMPLATES = Path(__file__).with_name("templates")
_SHOWN = 5  # examples of each reason
_LANGUAGES = 12
_UNITS = ("B", "kB", "MB", "GB", "TB")


def render(manifest: Mapping[str, Any], funnel: Mapping[str, Any]) -> str:
    """The page as HTML without scripts, which looks at nothing outside of it.

    Args:
        manifest: manifest.json of a data folder that a recipe made.
        funnel: its funnel.json.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=lambda value: clean(value) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=_size, count=_count)
    return environment.get_template("data.html").render(
        manifest=manifest,
        total=funnel["total"],
        stages=_stages(manifest, funnel),
        lengths=_lengths(funnel["total"]["lengths"]),
        languages=_languages(funnel["total"]["stages"]),
        counts=_counts(funnel["total"]["stages"]),
        sources=_sources(manifest, funnel),
        near_duplicates=funnel["near_duplicates"],
        examples=_examples(funnel),
    )


def not_read(manifest: Mapping[str, Any], funnel: Mapping[str, Any]) -> dict[str, int]:
    """Files and records of which no document was made, by reason: all that no stage dropped."""
    staged = {why for stage in funnel["total"]["stages"].values() for why in stage["dropped"]}
    return {why: n for why, n in manifest["dropped"].items() if why not in staged}


def _count(number: int) -> str:
    return f"{number:,}"


def _size(number: float) -> str:
    """Bytes for people."""
    for unit in _UNITS[:-1]:
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} {_UNITS[-1]}"


def _power_of_two(exponent: int) -> str:
    """Bytes, as a label of few characters."""
    return f"{2 ** (exponent % 10)} {('B', 'KiB', 'MiB', 'GiB')[exponent // 10]}"


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def _stages(manifest: Mapping[str, Any], funnel: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each stage: what passed, as shares of what was read, and why the rest did not."""
    read = funnel["total"]["read"]
    unread = [(why, [n]) for why, n in not_read(manifest, funnel).items()]
    rows = [{"name": "read", "passed": read, "documents": 100.0, "bytes": 100.0, "reasons": unread}]
    for name in funnel["stages"]:
        stage = funnel["total"]["stages"][name]
        if name == "read":
            title = "usable text"
        else:
            title = name.replace("_", "-")
        reasons = sorted(stage["dropped"].items(), key=lambda item: (-item[1][0], item[0]))
        rows.append(
            {
                "name": title,
                "passed": stage["passed"],
                "documents": _percent(stage["passed"][0], read[0]),
                "bytes": _percent(stage["passed"][1], read[1]),
                "reasons": reasons,
            }
        )
    return rows


def _lengths(lengths: Mapping[str, int]) -> list[dict[str, Any]]:
    """A bar for each power of two between the shortest and the longest document."""
    exponents = sorted(map(int, lengths))
    if not exponents:
        return []
    most = max(lengths.values())
    return [
        {
            "from": _power_of_two(exponent),
            "count": lengths.get(str(exponent), 0),
            "height": _percent(lengths.get(str(exponent), 0), most),
        }
        for exponent in range(exponents[0], exponents[-1] + 1)
    ]


def _languages(stages: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    counts = stages.get("language", {}).get("counts", {})
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [(name, n, _percent(n, total)) for name, n in ordered[:_LANGUAGES]]
    rest = sum(n for _, n in ordered[_LANGUAGES:])
    return [*rows, ("others", rest, _percent(rest, total))] if rest else rows


def _counts(stages: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, int]]]]:
    """What stages counted, but for languages."""
    return [
        (name.replace("_", "-"), sorted(stage["counts"].items(), key=lambda i: (-i[1], i[0])))
        for name, stage in stages.items()
        if stage["counts"] and name != "language"
    ]


def _sources(manifest: Mapping[str, Any], funnel: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, source in manifest["sources"].items():
        of_source = funnel["sources"][name]
        read, tokens = of_source["read"], source["tokens"]
        kept = [source["documents"], source["bytes"]]
        share = _percent(kept[0], read[0])
        rows.append({"name": name, **source, "read": read, "tokens": tokens, "kept": share})
    return rows


def _examples(funnel: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first examples of each reason: by stage, the most frequent reason first."""
    stages = funnel["total"]["stages"]

    def place(example: Mapping[str, Any]) -> tuple[int, int, str]:
        stage, reason = example["stage"], example["reason"]
        return funnel["stages"].index(stage), -stages[stage]["dropped"][reason][0], reason

    groups = []
    for _, group in itertools.groupby(sorted(funnel["examples"], key=place), key=place):
        shown = list(itertools.islice(group, _SHOWN))
        stage, reason = shown[0]["stage"], shown[0]["reason"]
        count = stages[stage]["dropped"][reason][0]
        groups.append({"title": title_of(stage, reason), "count": count, "examples": shown})
    return groups


def title_of(stage: str, reason: str) -> str:
    """The title of what a stage dropped for a reason, which may name the stage itself."""
    stage = stage.replace("_", "-")
    return reason if reason.startswith(f"{stage}: ") else f"{stage}: {reason}"
