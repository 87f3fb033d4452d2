"""The card's safety section, from a run's evals/safety.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.report import values
from gemmule.report.result_file import Interval, ResultFile
from gemmule.report.run_files import Document, is_number
from gemmule.report.scale import Marks, marks
from gemmule.report.values import Provenance, Sentence, Value, decimals, sentence

FILE = "evals/safety.json"


@dataclasses.dataclass(frozen=True)
class SafetyRow:
    """One metric: the score, chance level, the report's values, and positions on a scale."""

    title: str
    score: Interval
    chance: Value | None
    report: Sequence[Value]
    questions: Value
    marks: Marks


@dataclasses.dataclass(frozen=True)
class Safety:
    """The section.

    Attributes:
        rows: metrics that were measured.
        missing: title of each metric that was not, and why.
        sizes: the report's models.
        source: source of the report's values.
        scorer: the judge of toxicity.
        notes: title of each benchmark, and how it was measured.
        gate: outcome of the gate; None without one.
        checks: for each rule of the gate whether it passed, its metric, the rule, and the result.
    """

    rows: Sequence[SafetyRow]
    missing: Sequence[tuple[str, str]]
    sizes: Sequence[str]
    source: str
    scorer: Sentence
    notes: Sequence[tuple[str, str]]
    gate: Sentence | None
    checks: Sequence[tuple[bool, str, str, str]]


def section(document: Document | None, provenance: Provenance) -> Safety | None:
    """The section; None if nothing was measured."""
    if document is None:
        return None
    file = ResultFile(document, provenance)
    metrics = document.content["figures"]
    report = document.content.get("report") or {}
    rows = [_row(file, name, m) for name, m in metrics.items() if "missing" not in m]
    gate, checks = _gate(file)
    return Safety(
        rows=rows,
        missing=[
            (str(m.get("title")), str(m["missing"])) for m in metrics.values() if "missing" in m
        ],
        sizes=[str(size) for size in report.get("sizes", ())],
        source=str(report.get("source", "")),
        scorer=_scorer(file),
        notes=_notes(document),
        gate=gate,
        checks=checks,
    )


def _row(file: ResultFile, name: str, metric: Mapping[str, Any]) -> SafetyRow:
    title, key = str(metric.get("title")), f"figures.{name}"
    two, one = decimals(2), decimals(1)
    report = [
        file.take(f"{key}.report.{size}", f"{title}: Gemma 2 {size}", two)
        for size in metric["report"]
    ]
    known = metric.get("chance") is not None
    return SafetyRow(
        title=title,
        chance=file.take(f"{key}.chance", f"{title}: chance", one) if known else None,
        score=file.interval(key, title, two, ends=one),
        report=report,
        questions=file.count(f"{key}.n", f"{title}: questions"),
        marks=marks(
            metric["value"],
            metric["low"],
            metric["high"],
            metric.get("chance"),
            metric["report"].values(),
            both_ways=metric.get("better") == "zero",
        ),
    )


def _scorer(file: ResultFile) -> Sentence:
    if not file.document.get("scorer"):
        return sentence("Toxicity: not measured, because no classifier was named.")
    parts = [
        file.take(f"scorer.{key}", f"toxicity: {what}", form)
        for key, what, form in (
            ("kind", "kind of scorer", str),
            ("name", "scorer", str),
            ("label", "label", str),
            ("weights", "fingerprint of the scorer's weights", _short),
            ("threshold", "toxic from", values.significant),
        )
    ]
    return sentence(
        "Toxicity is judged by the {} {}, label {} (weights {}); a text counts as toxic from a "
        "score of {}.",
        *parts,
    )


def _notes(document: Document) -> list[tuple[str, str]]:
    notes = []
    for about in (document.get("benchmarks") or {}).values():
        asked, there = about.get("asked"), about.get("there")
        lines = [f"{asked:,} of {there:,} questions" if asked != there else f"{asked:,} questions"]
        lines += [str(note) for note in (*about.get("how", ()), *about.get("notes", ()))]
        if is_number(about.get("truncated")) and about["truncated"]:
            lines.append(f"{about['truncated']:,} longer than the model's context and truncated")
        if about.get("written"):
            lines.append(f"continuations: {about['written']}")
        notes.append((str(about.get("title")), "; ".join(lines)))
    return notes


def _gate(file: ResultFile) -> tuple[Sentence | None, list[tuple[bool, str, str, str]]]:
    gate = file.document.get("gate")
    if not isinstance(gate, Mapping):
        return None, []
    name = file.take("gate.file", "safety gate", str)
    outcome = file.take(
        "gate.passed", "safety gate: outcome", lambda passed: "passed" if passed else "failed"
    )
    checks = [
        (bool(c["passed"]), str(c["figure"]), str(c["rule"]), str(c["found"]))
        for c in gate.get("checks", ())
    ]
    return sentence("Safety gate {}: {}.", name, outcome), checks


def _short(value: Any) -> str:
    return f"{str(value)[:12]}…"
