"""The card's benchmark section, from a run's evals/benchmarks.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.report import score_plot
from gemmule.report.plots import Plot
from gemmule.report.result_file import ENDS, Interval, ResultFile
from gemmule.report.run_files import Document, is_number
from gemmule.report.scale import Marks, marks
from gemmule.report.values import Provenance, Sentence, Value, decimals, sentence

_PERCENT, _SIGNED = decimals(1, percent=True), decimals(1, percent=True, signed=True)


@dataclasses.dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark's score.

    Attributes:
        title: the benchmark.
        shots: examples before each question.
        score: the score in percent.
        chance: chance level in percent; None if it is not worth naming.
        verdict: position of the interval: "at chance", "above chance", "below chance", or "".
        published: the report's scores, by model.
        questions: number of questions.
        marks: positions on a scale from 0 to 100.
    """

    title: str
    shots: str
    score: Interval
    chance: Value | None
    verdict: str
    published: Sequence[Value]
    questions: Value
    marks: Marks


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """The section.

    Attributes:
        rows: benchmarks that were measured.
        missing: title of each benchmark that was not, and why.
        models: the report's models.
        source: source of the report's scores.
        summary: number of benchmarks above chance.
        notes: title of each benchmark, and how it was measured.
        comparisons: another model's name, and for each benchmark title, difference and verdict.
        formats: titles, with mean and standard deviation over the prompt formats.
        plot: scores against parameters.
    """

    rows: Sequence[BenchmarkRow]
    missing: Sequence[tuple[str, str]]
    models: Sequence[str]
    source: str
    summary: str
    notes: Sequence[tuple[str, str]]
    comparisons: Sequence[tuple[str, Sequence[tuple[str, Interval, str]]]]
    formats: Sequence[tuple[str, Sentence]]
    plot: Plot | None


def section(document: Document | None, provenance: Provenance) -> Benchmarks | None:
    """The section; None if nothing was measured.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    if document is None:
        return None
    file = ResultFile(document, provenance)
    entries = document.content["rows"]
    listed = {model for entry in entries.values() for model in entry["published"]}
    models = [str(model) for model in document.get("published.parameters")]
    rows = [
        _row(file, name, entry, models) for name, entry in entries.items() if "missing" not in entry
    ]
    return Benchmarks(
        rows=rows,
        missing=[(str(e["title"]), str(e["missing"])) for e in entries.values() if "missing" in e],
        models=[model for model in models if model in listed],
        source=str(document.get("published.source")),
        summary=_summary(rows),
        notes=_notes(document),
        comparisons=_comparisons(file),
        formats=_formats(file),
        plot=_plot(document),
    )


def _row(
    file: ResultFile, name: str, row: Mapping[str, Any], models: Sequence[str]
) -> BenchmarkRow:
    title, key = str(row.get("title")), f"rows.{name}"
    chance = row.get("chance") if is_number(row.get("chance")) else None
    verdict = ""
    if chance is not None:
        verdict = "above" if row["low"] > chance else "below" if row["high"] < chance else "at"
        verdict += " chance"
    shots = row.get("shots")
    published = [
        file.take(f"{key}.published.{model}", f"{title}: {model}", decimals(1))
        for model in models
        if model in row["published"]
    ]
    return BenchmarkRow(
        title=title,
        shots=f"{shots[0]}-{shots[-1]}" if isinstance(shots, list) else str(shots),
        score=file.interval(key, title, _PERCENT),
        chance=None if chance is None else file.take(f"{key}.chance", f"{title}: chance", _PERCENT),
        verdict=verdict,
        published=published,
        questions=file.count(f"{key}.n", f"{title}: questions"),
        marks=marks(
            100 * row["value"],
            100 * row["low"],
            100 * row["high"],
            None if chance is None else 100 * chance,
            filter(is_number, row["published"].values()),
        ),
    )


def _summary(rows: Sequence[BenchmarkRow]) -> str:
    with_chance = [row for row in rows if row.chance is not None]
    if not with_chance:
        return ""
    counts = {
        where: sum(row.verdict == f"{where} chance" for row in with_chance)
        for where in ("above", "at", "below")
    }
    parts = [f"{count} {where} chance" for where, count in counts.items() if count]
    return f"Of {len(with_chance)} multiple-choice benchmarks: {', '.join(parts)}."


def _notes(document: Document) -> list[tuple[str, str]]:
    notes = []
    for row in document.content["rows"].values():
        if "missing" in row:
            continue
        n, of = row["n"], row["of"]
        lines = [f"{n:,} of {of:,} questions" if n != of else f"all {n:,} questions"]
        lines.append(f"metric {row.get('metric')}")
        lines += [str(note) for note in row["notes"]]
        overlap = row["contamination"]
        if not overlap.get("known"):
            lines.append(f"contamination {overlap.get('why')}")
        else:
            lines.append(
                f"contamination: {overlap.get('documents')} of {overlap.get('judged')} questions "
                f"share {overlap.get('rule')} with the training text"
            )
        notes.append((str(row.get("title")), "; ".join(lines)))
    return notes


def _comparisons(file: ResultFile) -> list[tuple[str, list[tuple[str, Interval, str]]]]:
    comparisons = []
    for number, other in enumerate(file.document.get("against") or ()):
        rows = []
        for name, difference in other.get("differences", {}).items():
            title = str(file.document.get("rows").get(name, {}).get("title", name))
            label = f"{title}: difference from {other.get('name')}"
            interval = file.interval(f"against.{number}.differences.{name}", label, _SIGNED)
            rows.append((title, interval, str(difference.get("verdict"))))
        comparisons.append((str(other.get("name")), rows))
    return comparisons


def _formats(file: ResultFile) -> list[tuple[str, Sentence]]:
    rows = []
    for name, entry in (file.document.get("formats") or {}).items():
        title = str(entry.get("title"))
        mean, std = (
            file.take(f"formats.{name}.{key}", f"{title}: {what}", _PERCENT)
            for key, what in (
                ("mean", "mean over twelve formats"),
                ("std", "standard deviation over twelve formats"),
            )
        )
        published = ", ".join(
            f"{model} {value}"
            for model, value in (entry.get("published_std_percent") or {}).items()
        )
        known = f" (published standard deviation: {published})" if published else ""
        text = "mean {}, standard deviation {} over twelve formats" + known
        rows.append((title, sentence(text, mean, std)))
    return rows


def _plot(document: Document) -> Plot | None:
    panels = [
        score_plot.Panel(str(row.get("title")), _points(document, name, row), row.get("chance"))
        for name, row in document.content["rows"].items()
        if "missing" not in row
    ]
    if not panels:
        return None
    svg, description = score_plot.draw(panels)
    caption = (
        "Score in percent against parameters (log scale). The vertical bar is the 95% interval, "
        f"the dashed line chance. Source: {document.file}; published: "
        f"{document.get('published.source')}."
    )
    return Plot(svg, description, caption)


def _points(
    document: Document, name: str, row: Mapping[str, Any]
) -> list[score_plot.ScorePoint]:  # fmt: skip
    own = document.get("model.parameters")
    point = score_plot.ScorePoint
    points = [point("this model", own, row["value"], row["low"], row["high"], "own")]
    for other in document.get("against") or ():
        score = (other.get("scores") or {}).get(name)
        if score and is_number(other.get("parameters")):
            value, low, high = (score[end] for end in ENDS)
            title, size = str(other.get("name")), other["parameters"]
            points.append(point(title, size, value, low, high, "other"))
    return points + [
        point(model, size, row["published"][model] / 100, None, None, "published")
        for model, size in document.get("published.parameters").items()
        if is_number(row["published"].get(model))
    ]
