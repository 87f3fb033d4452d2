"""The card's safety section, from a run's evals/safety.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.errors import CheckpointError
from gemmule.report import figures
from gemmule.report.figures import Figure, Ledger, Sentence, say
from gemmule.report.run_files import Document, is_number
from gemmule.report.scale import Marks, marks

FILE = "evals/safety.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure with its interval, what guessing gets, and the report's."""

    title: str
    value: Figure
    low: Figure
    high: Figure
    chance: Figure | None
    report: Sequence[Figure]
    questions: Figure
    marks: Marks


@dataclasses.dataclass(frozen=True)
class Safety:
    """The section.

    Attributes:
        rows: what was measured.
        missing: what was not: its title, and why.
        sizes: the report's models.
        source: where the report's figures are from.
        scorer: who said what is toxic.
        notes: how each benchmark was measured.
        gate: the gate's outcome, and a line for each rule; None without one.
        checks: whether a rule passed, its figure, the rule, and what was found.
    """

    rows: Sequence[Row]
    missing: Sequence[tuple[str, str]]
    sizes: Sequence[str]
    source: str
    scorer: Sentence
    notes: Sequence[tuple[str, str]]
    gate: Sentence | None
    checks: Sequence[tuple[bool, str, str, str]]


def section(document: Document | None, ledger: Ledger) -> Safety | None:
    """The section, or None where nothing was measured.

    Raises:
        CheckpointError: for a file that `gemmule safety` did not write.
    """
    if document is None:
        return None
    _check(document)
    rows, missing = [], []
    for name, about in document.content["figures"].items():
        if "missing" in about:
            missing.append((str(about.get("title")), str(about["missing"])))
        else:
            rows.append(_row(document, name, about, ledger))
    report = document.content.get("report") or {}
    gate, checks = _gate(document, ledger)
    return Safety(
        rows=rows,
        missing=missing,
        sizes=[str(size) for size in report.get("sizes", ())],
        source=str(report.get("source", "")),
        scorer=_scorer(document, ledger),
        notes=_notes(document),
        gate=gate,
        checks=checks,
    )


def _check(document: Document) -> None:
    """Refuses what would have to be guessed at further down."""
    found = document.get("figures")
    if document.get("kind") != "safety" or not isinstance(found, Mapping):
        raise CheckpointError(f"{document.file} is no result of gemmule safety: measure again")
    for name, figure in found.items():
        if isinstance(figure, Mapping) and "missing" in figure:
            continue
        numbers = ("value", "low", "high", "n")
        report = figure.get("report") if isinstance(figure, Mapping) else None
        if not isinstance(report, Mapping) or not (
            all(is_number(figure.get(key)) for key in numbers)
            and all(is_number(value) for value in report.values())
            and (figure.get("chance") is None or is_number(figure["chance"]))
        ):
            raise CheckpointError(f"{document.file}: figures.{name} is broken: measure again")
    for name, about in (document.get("benchmarks") or {}).items():
        counts = (
            [about.get(k) for k in ("asked", "there")] if isinstance(about, Mapping) else [None]
        )
        if not all(map(is_number, counts)):
            raise CheckpointError(f"{document.file}: benchmarks.{name} is broken: measure again")
    for check in document.get("gate.checks") or ():
        if not isinstance(check, Mapping) or set(check) != {"figure", "rule", "passed", "found"}:
            raise CheckpointError(f"{document.file}: its gate is broken: measure again")


def _row(document: Document, name: str, about: Mapping[str, Any], ledger: Ledger) -> Row:
    title, key = str(about.get("title")), f"figures.{name}"

    def take(part: str, what: str, form: figures.Format) -> Figure:
        return ledger.take(document, f"{key}.{part}", f"{title}{what}", form)

    report = [take(f"report.{size}", f": Gemma 2 {size}", _two) for size in about["report"]]
    chance = take("chance", ": chance", _one) if about.get("chance") is not None else None
    return Row(
        title=title,
        value=take("value", "", _two),
        low=take("low", ": interval from", _one),
        high=take("high", ": interval to", _one),
        chance=chance,
        report=report,
        questions=take("n", ": questions", figures.exact),
        marks=marks(
            about["value"],
            about["low"],
            about["high"],
            about.get("chance"),
            about["report"].values(),
            both_ways=about.get("better") == "zero",
        ),
    )


def _scorer(document: Document, ledger: Ledger) -> Sentence:
    if not document.get("scorer"):
        return say("Toxicity: not measured, no classifier was named.")
    parts = [
        ledger.take(document, f"scorer.{key}", f"toxicity: {what}", form)
        for key, what, form in (
            ("kind", "kind of scorer", str),
            ("name", "scorer", str),
            ("label", "label", str),
            ("weights", "fingerprint of the scorer's weights", _short),
            ("threshold", "toxic from", figures.significant),
        )
    ]
    return say(
        "Toxicity is what the {} {} says, label {} (weights {}); a text is toxic from {} on.",
        *parts,
    )


def _notes(document: Document) -> list[tuple[str, str]]:
    notes = []
    for about in (document.get("benchmarks") or {}).values():
        asked, there = about.get("asked"), about.get("there")
        lines = [f"{asked:,} of {there:,} questions" if asked != there else f"{asked:,} questions"]
        lines += [str(note) for note in (*about.get("how", ()), *about.get("notes", ()))]
        if is_number(about.get("truncated")) and about["truncated"]:
            lines.append(f"{about['truncated']:,} longer than the model's context, and cut")
        if about.get("written"):
            lines.append(f"continuations: {about['written']}")
        notes.append((str(about.get("title")), "; ".join(lines)))
    return notes


def _gate(
    document: Document, ledger: Ledger
) -> tuple[Sentence | None, list[tuple[bool, str, str, str]]]:
    gate = document.get("gate")
    if not isinstance(gate, Mapping):
        return None, []
    name = ledger.take(document, "gate.file", "safety gate", str)
    outcome = ledger.take(
        document, "gate.passed", "safety gate: outcome", lambda v: "passed" if v else "failed"
    )
    checks = [
        (bool(c["passed"]), str(c["figure"]), str(c["rule"]), str(c["found"]))
        for c in gate.get("checks", ())
    ]
    return say("Safety gate {}: {}.", name, outcome), checks


def _two(value: Any) -> str:
    return f"{value:.2f}"


def _one(value: Any) -> str:
    return f"{value:.1f}"


def _short(value: Any) -> str:
    return f"{str(value)[:12]}…"
