"""What happened while a corpus was read: what was left out, and what was decoded."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_EXAMPLES = 3  # names kept of each reason
_FIELDS = 20  # names kept of fields
_LONGEST_NAME = 60  # characters
# What a user can do about a reason; for others the reason says it all.
ADVICE = {
    "PDF files": "convert them to text first",
    "word processor files": "save them as text first",
    "e-books": "convert them to text first",
    "spreadsheets": "save them as CSV",
    "archives": "unpack them first",
    "databases": "export them as CSV or JSON lines",
    "Git LFS pointers": "run git lfs pull where they were cloned",
    "not UTF-8": "convert them with iconv",
    "folders that the pattern matches": "end the pattern with /** to read them",
}


class ReadLog:
    """Counts of what was left out, by reason, and of what was decoded, by encoding.

    Attributes:
        left_out: number of files, records or documents that are not used, by reason.
        examples: names of the first few of them, by reason.
        decoded: number of files decoded from another encoding than UTF-8, by encoding.
        decoded_examples: names of the first few of them, by encoding.
        fields: the fields of files that were left out because they lack the one asked for.
        records: number of records whose text was read.
        licensed: number of documents that say their own license.
    """

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.decoded: Counter[str] = Counter()
        self.decoded_examples: dict[str, list[str]] = {}
        self.fields: dict[str, None] = {}
        self.records = 0
        self.licensed = 0

    def leave_out(self, reason: str, name: str, count: int = 1) -> None:
        """Counts something that is not used, or several records of one file."""
        self.left_out[reason] += count
        _add(self.examples, reason, name)

    def decode(self, encoding: str, name: str) -> None:
        """Counts a file that is decoded from another encoding than UTF-8."""
        self.decoded[encoding] += 1
        _add(self.decoded_examples, encoding, name)

    def lack_field(self, field: str, name: str, fields: Iterable[str]) -> None:
        """Counts a file whose records do not have the field."""
        self.leave_out(f"files without the field {field!r}", name)
        for other in itertools.islice(fields, max(0, _FIELDS - len(self.fields))):
            self.fields[other] = None

    def update(self, other: "ReadLog") -> None:
        """Adds what another log holds."""
        self.left_out.update(other.left_out)
        self.decoded.update(other.decoded)
        self.fields.update(other.fields)
        self.records += other.records
        self.licensed += other.licensed
        for mine, others in (
            (self.examples, other.examples),
            (self.decoded_examples, other.decoded_examples),
        ):
            for key, names in others.items():
                for name in names:
                    _add(mine, key, name)

    @property
    def notes(self) -> list[str]:
        """Remarks for the user about encodings."""
        return [
            f"decoded from {encoding}: {count:,}{_named(self.decoded_examples[encoding], count)}"
            for encoding, count in sorted(self.decoded.items())
        ]

    def summary(self) -> str:
        """What was left out, in one line."""
        return "; ".join(
            f"{count:,} {reason}{_named(self.examples[reason], count)}{_advice(reason)}"
            for reason, count in sorted(self.left_out.items())
        )


def dropped_lines(manifest: Mapping[str, Any]) -> list[str]:
    """What the manifest of a data folder says was left out, one reason a line."""
    examples = manifest.get("dropped_examples", {})  # not in folders of earlier versions
    return [
        f"dropped, {reason}: {count:,}{_named(examples.get(reason, ()), count)}{_advice(reason)}"
        for reason, count in manifest["dropped"].items()
    ]


def printable(name: str) -> str:
    """A file's name as any terminal can show it, shortened; usual names stay as they are."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name
    )
    if len(shown) <= _LONGEST_NAME:
        return shown
    return f"{shown[: _LONGEST_NAME // 2]}…{shown[-_LONGEST_NAME // 2 + 1 :]}"


def _add(examples: dict[str, list[str]], key: str, name: str) -> None:
    names = examples.setdefault(key, [])
    if len(names) < _EXAMPLES and (shown := printable(name)) not in names:
        names.append(shown)


def _advice(reason: str) -> str:
    return f": {ADVICE[reason]}" if reason in ADVICE else ""


def _named(names: Sequence[str], count: int) -> str:
    if not names:
        return ""
    more = ", …" if count > len(names) else ""
    return f" ({', '.join(names)}{more})"
