"""The card's memorisation section, from a run's evals/memorization.json."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.errors import CheckpointError
from gemmule.report import figures
from gemmule.report.figures import Figure, Ledger, Sentence, say
from gemmule.report.run_files import Document, is_number

FILE = "evals/memorization.json"
KINDS = ("exact", "approximate")
SEVERITIES = ("high", "medium", "low")
_MOST_SOURCES = 12
_ENDS = ("value", "low", "high")


@dataclasses.dataclass(frozen=True)
class Share:
    """A share in percent with its interval."""

    value: Figure
    low: Figure
    high: Figure


@dataclasses.dataclass(frozen=True)
class Row:
    """Passages of one kind; what was not measured is None, and `passages` of a difference."""

    title: str
    passages: Figure | None
    exact: Share | None
    approximate: Share | None


@dataclasses.dataclass(frozen=True)
class Memorization:
    """The section.

    Attributes:
        lead: what was done, and what came out.
        rows: training text, another model's on the same passages, text never read.
        details: the same by source, by how often it was read, and canaries.
        personal: of personal data, by severity: in the text, and given back.
        notes: what a reader should know.
    """

    lead: Sequence[Sentence]
    rows: Sequence[Row]
    details: Sequence[tuple[str, Sequence[Row]]]
    personal: Sequence[tuple[str, Figure, Figure, Share]]
    notes: Sequence[str]


def section(document: Document | None, ledger: Ledger) -> Memorization | None:
    """The section, or None where nothing was measured.

    Raises:
        CheckpointError: for a file that `gemmule memorization` did not write.
    """
    if document is None:
        return None
    _check(document)
    take = _Taker(document, ledger)
    rows = [take.row("train", "this model, training text")]
    if document.get("against") is not None:
        rows += _against(document, take)
    rows.append(take.row("control", "this model, text never read"))
    return Memorization(
        lead=_lead(rows, take),
        rows=rows,
        details=_details(document, take),
        personal=[take.personal(severity) for severity in SEVERITIES],
        notes=[str(note) for note in document.get("notes") or ()],
    )


class _Taker:
    """Takes figures from the one file."""

    def __init__(self, document: Document, ledger: Ledger) -> None:
        self._document, self._ledger = document, ledger

    def count(self, key: str, label: str) -> Figure:
        return self._ledger.take(self._document, key, label, figures.exact)

    def share(self, key: str, label: str, form: figures.Format | None = None) -> Share | None:
        if self._document.get(key) is None:
            return None
        form = form or _percent
        value, low, high = (
            self._ledger.take(self._document, f"{key}.{end}", f"{label}{words}", form)
            for end, words in zip(_ENDS, ("", ": interval from", ": interval to"), strict=True)
        )
        return Share(value, low, high)

    def row(self, key: str, title: str) -> Row:
        passages = self.count(f"{key}.probes", f"{title}: passages")
        exact, approximate = (self.share(f"{key}.{k}", f"{title}, {k}") for k in KINDS)
        return Row(title, passages, exact, approximate)

    def personal(self, severity: str) -> tuple[str, Figure, Figure, Share]:
        key, label = f"personal_data.severities.{severity}", f"personal data, {severity} severity"
        share = self.share(f"{key}.of_probes", f"{label}: given back")
        assert share is not None  # _check has seen it
        in_text = self.count(f"{key}.in_text", f"{label}: passages that hold it")
        recalled = self.count(f"{key}.recalled", f"{label}: passages that gave it back")
        return severity, in_text, recalled, share


def _against(document: Document, take: _Taker) -> list[Row]:
    path = str(document.get("against.model.path") or "")
    name = re.split(r"[/\\]", path)[-1] or "the other model"
    title = f"difference to {name}"
    exact, approximate = (
        take.share(f"against.difference.{kind}", f"{title}, {kind}", _signed) for kind in KINDS
    )
    row = take.row("against.train", f"{name}, the same passages")
    return [row, Row(f"{title}, paired", None, exact, approximate)]


def _lead(rows: Sequence[Row], take: _Taker) -> list[Sentence]:
    train, control = rows[0], rows[-1]
    settings = "measured.settings."
    prompt = take.count(f"{settings}prompt_tokens", "tokens of a prompt")
    length = take.count(f"{settings}continuation_tokens", "tokens of a continuation")
    edits = take.count(f"{settings}most_edits", "edits that still count as approximate")
    assert train.passages is not None and train.exact is not None and train.approximate is not None
    lead = [
        say(
            "Given {} tokens of its training text, the model went on with the next {} exactly in "
            "{}% of {} passages, and with edits to at most {} of them in {}%.",
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
            say(
                "Of text that it never read, the control, it gave {}% and {}%.",
                control.exact.value,
                control.approximate.value,
            )
        )
    return lead


def _details(document: Document, take: _Taker) -> list[tuple[str, Sequence[Row]]]:
    found: list[tuple[str, Sequence[Row]]] = []
    for title, key, name in (
        ("By how often a passage was read", "times_read", "times"),
        ("By source", "sources", "source"),
        ("Canaries, by how often they are in the text", "canaries.groups", "repeats"),
    ):
        groups = document.get(key)
        # One group is the first table's row again.
        if isinstance(groups, Sequence) and len(groups) > (0 if "canaries" in key else 1):
            entries = list(enumerate(groups))[:_MOST_SOURCES]
            shown = [take.row(f"{key}.{i}", _group(key, group[name])) for i, group in entries]
            found.append((title, shown))
    return found


def _group(key: str, name: object) -> str:
    if key == "sources":
        return figures.without_folders(str(name))
    times = {"1": "once", "2": "twice"}.get(str(name), f"{name} times")
    return f"planted {times}" if "canaries" in key else f"read {times}"


def _check(document: Document) -> None:
    """Refuses what would have to be guessed at further down."""
    if document.get("kind") != "memorization":
        raise CheckpointError(f"{document.file} is no result of gemmule memorization: measure anew")
    groups: list[tuple[str, Any]] = [(key, document.get(key)) for key in ("train", "control")]
    if document.get("against") is not None:
        groups.append(("against.train", document.get("against.train")))
    named = (("sources", "source"), ("times_read", "times"), ("canaries.groups", "repeats"))
    for key, name in named:
        for i, group in enumerate(document.get(key) or ()):
            if not isinstance(group, Mapping) or name not in group:
                raise _broken(document, f"{key}.{i}")
            groups.append((f"{key}.{i}", group))
    for key, group in groups:
        whole = isinstance(group, Mapping) and is_number(group.get("probes"))
        if not whole or not all(_is_share(group.get(kind), key != "train") for kind in KINDS):
            raise _broken(document, key)
    for kind in KINDS:
        key = f"against.difference.{kind}"
        if not _is_share(document.get(key), document.get("against") is None):
            raise _broken(document, key)
    _check_figures(document)


def _check_figures(document: Document) -> None:
    for severity in SEVERITIES:
        found = document.get(f"personal_data.severities.{severity}")
        counts = isinstance(found, Mapping) and all(
            is_number(found.get(key)) for key in ("in_text", "recalled")
        )
        if not counts or not _is_share(found.get("of_probes"), False):
            raise _broken(document, f"personal_data.severities.{severity}")
    for key in ("prompt_tokens", "continuation_tokens", "most_edits"):
        if not is_number(document.get(f"measured.settings.{key}")):
            raise _broken(document, f"measured.settings.{key}")


def _is_share(value: Any, may_be_none: bool) -> bool:
    if value is None:
        return may_be_none
    return isinstance(value, Mapping) and all(is_number(value.get(end)) for end in _ENDS)


def _broken(document: Document, key: str) -> CheckpointError:
    return CheckpointError(f"{document.file}: {key} is broken: measure anew with --fresh")


def _percent(value: Any) -> str:
    return f"{100 * value:.2f}"


def _signed(value: Any) -> str:
    return f"{100 * value:+.2f}"
