"""Reading one result file of an evaluation for the card: checks, values and intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gemmule.errors import CheckpointError
from gemmule.report import values
from gemmule.report.run_files import Document, is_number
from gemmule.report.values import Format, Provenance, Value

ENDS = ("value", "low", "high")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95% interval."""

    value: Value
    low: Value
    high: Value


@dataclasses.dataclass(frozen=True)
class ResultFile:
    """A result file and the provenance that its values go through.

    Attributes:
        document: the file.
        provenance: the card's values.
        command: the command that writes such files, for error messages.
        again: what to do about a broken file, for error messages.
    """

    document: Document
    provenance: Provenance
    command: str
    again: str = "measure again"

    def check_kind(self, kind: str, *groups: str) -> None:
        """Refuses a file of another kind, or without one of the `groups`.

        Raises:
            CheckpointError: for such a file.
        """
        whole = all(isinstance(self.document.get(group), Mapping) for group in groups)
        if self.document.get("kind") != kind or not whole:
            raise CheckpointError(
                f"{self.document.file} is not a result of {self.command}: {self.again}"
            )

    def check(self, key: str, valid: bool) -> None:
        """Refuses the file unless what is under `key` is valid.

        Raises:
            CheckpointError: naming the key.
        """
        if not valid:
            raise CheckpointError(f"{self.document.file}: {key} is broken: {self.again}")

    def take(self, key: str, label: str, form: Format) -> Value:
        """The value under `key`."""
        return self.provenance.take(self.document, key, label, form)

    def count(self, key: str, label: str) -> Value:
        """The whole number under `key`."""
        return self.take(key, label, values.exact)

    def interval(self, key: str, label: str, form: Format, ends: Format | None = None) -> Interval:
        """The value and the interval in the group under `key`, the ends in their own format."""
        return Interval(
            self.take(f"{key}.value", label, form),
            self.take(f"{key}.low", f"{label}: interval from", ends or form),
            self.take(f"{key}.high", f"{label}: interval to", ends or form),
        )


def has_numbers(group: Any, keys: Sequence[str] = ENDS) -> bool:
    """Whether `group` is a mapping that holds a finite number under each of the keys."""
    return isinstance(group, Mapping) and all(is_number(group.get(key)) for key in keys)
