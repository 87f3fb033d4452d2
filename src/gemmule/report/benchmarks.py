"""The card's benchmark section, from a run's evals/benchmarks.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.errors import CheckpointError
from gemmule.report import figures, score_plot
from gemmule.report.figures import Figure, Ledger, Sentence, say
from gemmule.report.plots import Plot
from gemmule.report.run_files import Document, is_number
from gemmule.report.scale import Marks, marks


@dataclasses.dataclass(frozen=True)
class Row:
    """One benchmark's score.

    Attributes:
        title: the benchmark.
        shots: examples before each question.
        value: the score in percent, with `low` and `high` of its interval.
        chance: what guessing gets, None where it gets nothing worth naming.
        verdict: where the interval lies: "at chance", "above chance", "below chance", or nothing.
        published: the report's, by model.
        questions: how many were asked.
        marks: where they stand on a scale from 0 to 100.
    """

    title: str
    shots: str
    value: Figure
    low: Figure
    high: Figure
    chance: Figure | None
    verdict: str
    published: Sequence[Figure]
    questions: Figure
    marks: Marks


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """The section.

    Attributes:
        rows: what was measured.
        missing: what was not: its title, and why.
        models: the report's.
        source: where the report's figures are from.
        summary: how many benchmarks are above chance.
        notes: how each was measured, and what a reader must know.
        comparisons: another model's name, and rows of title, difference, interval and verdict.
        formats: titles, with mean and standard deviation over the formats.
        plot: scores against parameters.
    """

    rows: Sequence[Row]
    missing: Sequence[tuple[str, str]]
    models: Sequence[str]
    source: str
    summary: str
    notes: Sequence[tuple[str, str]]
    comparisons: Sequence[tuple[str, Sequence[tuple[str, Figure, Figure, Figure, str]]]]
    formats: Sequence[tuple[str, Sentence]]
    plot: Plot | None


def section(document: Document | None, ledger: Ledger) -> Benchmarks | None:
    """The section, or None where nothing was measured.

    Raises:
        CheckpointError: for a file that `gemmule eval` did not write.
        MissingExtraError: when matplotlib is not installed.
    """
    if document is None:
        return None
    _check(document)
    found = document.content["rows"]
    models = [str(model) for model in document.get("published.parameters")]
    rows = [
        _row(document, name, row, models, ledger)
        for name, row in found.items()
        if "missing" not in row
    ]
    return Benchmarks(
        rows=rows,
        missing=[(str(r["title"]), str(r["missing"])) for r in found.values() if "missing" in r],
        models=[model for model in models if any(model in r["published"] for r in found.values())],
        source=str(document.get("published.source")),
        summary=_summary(rows),
        notes=_notes(document),
        comparisons=_comparisons(document, ledger),
        formats=_formats(document, ledger),
        plot=_plot(document),
    )


def _check(document: Document) -> None:
    """Refuses what would have to be guessed at further down."""
    wrong = CheckpointError(f"{document.file} is no result of gemmule eval: measure again")
    rows, parameters = document.get("rows"), document.get("published.parameters")
    if document.get("kind") != "benchmarks" or not isinstance(rows, Mapping):
        raise wrong
    if not isinstance(parameters, Mapping) or not all(map(is_number, parameters.values())):
        raise wrong
    if not is_number(document.get("model.parameters")):
        raise wrong
    for name, row in rows.items():
        known = isinstance(row, Mapping) and isinstance(row.get("published"), Mapping)
        numbers = ("value", "low", "high", "n", "of")
        if not known or not (
            "missing" in row
            or (
                all(is_number(row.get(key)) for key in numbers)
                and isinstance(row.get("notes"), list)
                and isinstance(row.get("contamination"), Mapping)
            )
        ):
            raise CheckpointError(f"{document.file}: rows.{name} is broken: measure again")


def _row(
    document: Document, name: str, row: Mapping[str, Any], models: Sequence[str], ledger: Ledger
) -> Row:
    title, key = str(row.get("title")), f"rows.{name}"

    def take(part: str, what: str, form: figures.Format) -> Figure:
        return ledger.take(document, f"{key}.{part}", f"{title}{what}", form)

    chance = row.get("chance")
    verdict = ""
    if is_number(chance):
        verdict = "above" if row["low"] > chance else "below" if row["high"] < chance else "at"
        verdict += " chance"
    published = [
        take(f"published.{model}", f": {model}", _one)
        for model in models
        if model in row["published"]
    ]
    shots = row.get("shots")
    return Row(
        title=title,
        shots=f"{shots[0]}-{shots[-1]}" if isinstance(shots, list) else str(shots),
        value=take("value", "", _percent),
        low=take("low", ": interval from", _percent),
        high=take("high", ": interval to", _percent),
        chance=take("chance", ": chance", _percent) if is_number(chance) else None,
        verdict=verdict,
        published=published,
        questions=take("n", ": questions", figures.exact),
        marks=marks(
            100 * row["value"],
            100 * row["low"],
            100 * row["high"],
            100 * chance if chance is not None and is_number(chance) else None,
            filter(is_number, row["published"].values()),
        ),
    )


def _summary(rows: Sequence[Row]) -> str:
    guessable = [row for row in rows if row.chance is not None]
    if not guessable:
        return ""
    counts = {
        where: sum(row.verdict == f"{where} chance" for row in guessable)
        for where in ("above", "at", "below")
    }
    said = [f"{count} {where} chance" for where, count in counts.items() if count]
    return f"Of {len(guessable)} multiple-choice benchmarks: {', '.join(said)}."


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


def _comparisons(
    document: Document, ledger: Ledger
) -> list[tuple[str, list[tuple[str, Figure, Figure, Figure, str]]]]:
    found = []
    others = document.get("against") or ()
    for number, other in enumerate(others):
        rows = []
        for name, difference in other.get("differences", {}).items():
            title = str(document.get("rows").get(name, {}).get("title", name))
            parts = [
                ledger.take(
                    document,
                    f"against.{number}.differences.{name}.{part}",
                    f"{title}: difference from {other.get('name')}{what}",
                    _signed,
                )
                for part, what in (("value", ""), ("low", ", from"), ("high", ", to"))
            ]
            rows.append((title, parts[0], parts[1], parts[2], str(difference.get("verdict"))))
        found.append((str(other.get("name")), rows))
    return found


def _formats(document: Document, ledger: Ledger) -> list[tuple[str, Sentence]]:
    rows = []
    for name, found in (document.get("formats") or {}).items():
        title = str(found.get("title"))
        mean, std = (
            ledger.take(document, f"formats.{name}.{key}", f"{title}: {what}", _percent)
            for key, what in (
                ("mean", "mean over twelve formats"),
                ("std", "standard deviation over twelve formats"),
            )
        )
        published = ", ".join(
            f"{model} {value}"
            for model, value in (found.get("published_std_percent") or {}).items()
        )
        known = f" (published standard deviation: {published})" if published else ""
        text = "mean {}, standard deviation {} over twelve formats" + known
        rows.append((title, say(text, mean, std)))
    return rows


def _plot(document: Document) -> Plot | None:
    own = document.get("model.parameters")
    published = document.get("published.parameters")
    panels = []
    for name, row in document.content["rows"].items():
        if "missing" in row:
            continue
        points = [score_plot.Point("this model", own, row["value"], row["low"], row["high"], "own")]
        for other in document.get("against") or ():
            score = (other.get("scores") or {}).get(name)
            if score and is_number(other.get("parameters")):
                points.append(
                    score_plot.Point(
                        str(other.get("name")), other["parameters"],
                        score["value"], score["low"], score["high"], "other",
                    )
                )  # fmt: skip
        points += [
            score_plot.Point(model, size, row["published"][model] / 100, None, None, "published")
            for model, size in published.items()
            if is_number(row["published"].get(model))
        ]
        panels.append(score_plot.Panel(str(row.get("title")), points, row.get("chance")))
    if not panels:
        return None
    svg, words = score_plot.draw(panels)
    caption = (
        "Score in percent against parameters (log scale). The vertical bar is the 95% interval, "
        f"the dashed line chance. Source: {document.file}; published: "
        f"{document.get('published.source')}."
    )
    return Plot(svg, words, caption)


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}"


def _one(value: Any) -> str:
    return f"{value:.1f}"


def _signed(value: Any) -> str:
    return f"{100 * value:+.1f}"
