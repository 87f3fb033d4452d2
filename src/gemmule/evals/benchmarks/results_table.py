"""Benchmark results as tables in the terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.console import console, table
from gemmule.evals.benchmarks import suites


def listing(as_json: bool) -> None:
    """Prints all benchmarks, and the suites that contain them."""
    rows = [
        (
            b.name,
            b.title,
            str(b.shots),
            b.metric,
            ", ".join(name for name, suite in suites.SUITES.items() if _has(suite, b.name)),
        )
        for b in suites.BENCHMARKS.values()
    ]
    names = ("name", "title", "shots", "metric", "suites")
    if as_json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    else:
        table(names, rows)
        for suite in suites.SUITES.values():
            console.print(f"--suite {suite.name}: {suite.about}", markup=False)


def _has(suite: suites.Suite, name: str) -> bool:
    return any(entry.benchmark.name == name for entry in suite.entries)


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table for each model; for several, a table of differences from the first."""
    for result in results:
        sizes = list(result["published"]["parameters"])
        heads = ["benchmark", "shots", "score", "95%", "chance", "n"]
        heads += [size.removeprefix("Gemma 2 ") for size in sizes]
        rows = [_row(row, sizes) for row in result["rows"].values()]
        table(heads, rows, title=f"{result['model']['name']}, percent")
        for line in _remarks(result):
            console.print(line, markup=False, highlight=False)
        _show_formats(result)
    for other in results[0].get("against", ()):
        changes = [
            (
                results[0]["rows"][name]["title"],
                _percent(difference["value"], "+.1f"),
                f"{_percent(difference['low'], '+.1f')} to {_percent(difference['high'], '+.1f')}",
                f"{difference['n']:,}",
                difference["verdict"],
            )
            for name, difference in other["differences"].items()
        ]
        heads = ["benchmark", "difference", "95% interval", "questions", ""]
        table(heads, changes, title=f"{results[0]['model']['name']} less {other['name']}, percent")


def _row(row: Mapping[str, Any], sizes: Sequence[str]) -> list[str]:
    published = [f"{row['published'][s]:.1f}" if s in row["published"] else "" for s in sizes]
    if "missing" in row:
        return [row["title"], _shots(row), "missing", "", "", "", *published]
    return [
        row["title"],
        _shots(row),
        _percent(row["value"]),
        f"{_percent(row['low'])}–{_percent(row['high'])}",
        _chance(row),
        f"{row['n']:,}",
        *published,
    ]


def _chance(row: Mapping[str, Any]) -> str:
    """The score of guessing, and whether the score's interval is at, above or below it."""
    if row["chance"] is None:
        return ""
    where = "at" if row["at_chance"] else "above" if row["low"] > row["chance"] else "below"
    return f"{where} {_percent(row['chance'])}"


def _shots(row: Mapping[str, Any]) -> str:
    shots = row["shots"]
    return str(shots) if isinstance(shots, int) else f"{shots[0]}-{shots[-1]}"


def _percent(value: float, form: str = ".1f") -> str:
    return format(100 * value, form)


def _remarks(result: Mapping[str, Any]) -> list[str]:
    lines = [f"2B, 9B, 27B: Gemma 2, from the {result['published']['source']}"]
    unknown = [row["contamination"] for row in result["rows"].values() if "contamination" in row]
    if unknown and not unknown[0]["known"]:
        lines.append(f"contamination: {unknown[0]['why']}")
    for row in result["rows"].values():
        if "missing" in row:
            lines.append(f"{row['title']}: missing: {row['missing']}")
            continue
        if row["n"] < row["of"]:
            lines.append(f"{row['title']}: {row['n']:,} of {row['of']:,} questions")
        lines += [f"{row['title']}: {note}" for note in row["notes"]]
        overlap = row["contamination"]
        if overlap["documents"]:
            lines.append(
                f"{row['title']}: {overlap['documents']:,} of {overlap['judged']:,} questions "
                f"share {overlap['rule']} with the training text"
            )
    return lines


def _show_formats(result: Mapping[str, Any]) -> None:
    rows = [
        (
            spread["title"],
            _percent(spread["mean"]),
            _percent(spread["std"]),
            ", ".join(f"{m} {v:.1f}" for m, v in spread["published_std_percent"].items()),
        )
        for spread in result["formats"].values()
    ]
    if rows:
        heads = ["benchmark", "mean", "std", "published std"]
        table(heads, rows, title="over twelve formats, percent")
