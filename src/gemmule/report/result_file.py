"""Values and intervals of one evaluation's result file, for the card."""

import dataclasses

from gemmule.report import values
from gemmule.report.run_files import Document
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
        document: the file, checked by its schema.
        provenance: the card's values.
    """

    document: Document
    provenance: Provenance

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
