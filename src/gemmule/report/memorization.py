"""The card's memorization section, from a run's evals/memorization.json."""

import dataclasses
import re
from collections.abc import Sequence

from gemmule.report import values
from gemmule.report.result_file import Interval, ResultFile
from gemmule.report.run_files import Document
from gemmule.report.values import Format, Provenance, Sentence, Value, decimals, sentence

FILE = "evals/memorization.json"
KINDS = ("exact", "approximate")
SEVERITIES = ("high", "medium", "low")
_MAX_SOURCES = 12
_PERCENT, _SIGNED = decimals(2, percent=True), decimals(2, percent=True, signed=True)


@dataclasses.dataclass(frozen=True)
class PassagesRow:
    """Extraction rates of one group of passages, in percent.

    Attributes:
        title: the group.
        passages: number of passages; None for a difference.
        exact: exactly reproduced; None if it was not measured.
        approximate: reproduced but for a tenth of the tokens; None if it was not measured.
    """

    title: str
    passages: Value | None
    exact: Interval | None
    approximate: Interval | None


@dataclasses.dataclass(frozen=True)
class Memorization:
    """The section.

    Attributes:
        lead: the measurement and its result.
        rows: training text, another model's on the same passages, and text never seen.
        details: the same by source, by number of repetitions, and for canaries.
        personal: severity of personal data, passages that contain it, passages that reproduced
            it, and their rate.
        notes: what a reader should know.
    """

    lead: Sequence[Sentence]
    rows: Sequence[PassagesRow]
    details: Sequence[tuple[str, Sequence[PassagesRow]]]
    personal: Sequence[tuple[str, Value, Value, Interval]]
    notes: Sequence[str]


def section(document: Document | None, provenance: Provenance) -> Memorization | None:
    """The section; None if nothing was measured."""
    if document is None:
        return None
    file = ResultFile(document, provenance)
    rows = [_row(file, "train", "this model, training text")]
    if document.get("against") is not None:
        rows += _against(file)
    rows.append(_row(file, "control", "this model, text never seen"))
    return Memorization(
        lead=_lead(rows, file),
        rows=rows,
        details=_details(file),
        personal=[_personal(file, severity) for severity in SEVERITIES],
        notes=[str(note) for note in document.get("notes") or ()],
    )


def _rate(file: ResultFile, key: str, label: str, form: Format = _PERCENT) -> Interval | None:
    return None if file.document.get(key) is None else file.interval(key, label, form)


def _row(file: ResultFile, key: str, title: str) -> PassagesRow:
    passages = file.count(f"{key}.probes", f"{title}: passages")
    exact, approximate = (_rate(file, f"{key}.{kind}", f"{title}, {kind}") for kind in KINDS)
    return PassagesRow(title, passages, exact, approximate)


def _personal(file: ResultFile, severity: str) -> tuple[str, Value, Value, Interval]:
    key, label = f"personal_data.severities.{severity}", f"personal data, {severity} severity"
    rate = file.interval(f"{key}.of_probes", f"{label}: reproduced", _PERCENT)
    in_text = file.count(f"{key}.in_text", f"{label}: passages that contain it")
    recalled = file.count(f"{key}.recalled", f"{label}: passages that reproduced it")
    return severity, in_text, recalled, rate


def _against(file: ResultFile) -> list[PassagesRow]:
    path = str(file.document.get("against.model.path") or "")
    name = re.split(r"[/\\]", path)[-1] or "the other model"
    title = f"difference from {name}"
    exact, approximate = (
        _rate(file, f"against.difference.{kind}", f"{title}, {kind}", _SIGNED) for kind in KINDS
    )
    row = _row(file, "against.train", f"{name}, the same passages")
    return [row, PassagesRow(f"{title}, paired", None, exact, approximate)]


def _lead(rows: Sequence[PassagesRow], file: ResultFile) -> list[Sentence]:
    train, control = rows[0], rows[-1]
    settings = "measured.settings."
    prompt = file.count(f"{settings}prompt_tokens", "tokens of a prompt")
    length = file.count(f"{settings}continuation_tokens", "tokens of a continuation")
    edits = file.count(f"{settings}most_edits", "edits that still count as approximate")
    assert train.passages is not None and train.exact is not None and train.approximate is not None
    lead = [
        sentence(
            "Given {} tokens of its training text, the model reproduced the next {} tokens "
            "exactly for {}% of {} passages, and with at most {} of them edited for {}%.",
            prompt,
            length,
            train.exact.value,
            train.passages,
            edits,
            train.approximate.value,
        )
    ]
    if control.exact is not None and control.approximate is not None:
        lead.append(
            sentence(
                "For text that it never saw, the control, the rates are {}% and {}%.",
                control.exact.value,
                control.approximate.value,
            )
        )
    return lead


def _details(file: ResultFile) -> list[tuple[str, Sequence[PassagesRow]]]:
    details: list[tuple[str, Sequence[PassagesRow]]] = []
    for title, key, name in (
        ("By number of times a passage was seen", "times_read", "times"),
        ("By source", "sources", "source"),
        ("Canaries, by number of repetitions in the text", "canaries.groups", "repeats"),
    ):
        groups = file.document.get(key)
        # A single group would repeat the first table's row.
        if isinstance(groups, Sequence) and len(groups) > (0 if "canaries" in key else 1):
            entries = list(enumerate(groups))[:_MAX_SOURCES]
            rows = [_row(file, f"{key}.{i}", _group(key, group[name])) for i, group in entries]
            details.append((title, rows))
    return details


def _group(key: str, name: object) -> str:
    if key == "sources":
        return values.without_folders(str(name))
    times = {"1": "once", "2": "twice"}.get(str(name), f"{name} times")
    return f"planted {times}" if "canaries" in key else f"seen {times}"
