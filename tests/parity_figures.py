"""What the parity tests measured, as one table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Row:
    cases: int = 0
    worst: float = 0.0
    allowed: float | None = None


@dataclass(repr=False)  # hypothesis prints it with every failing example
class Figures:
    """Rows by group, in the order in which they first appear."""

    rows: dict[str, Row] = field(default_factory=dict)

    def note(self, group: str, value: float, allowed: float | None = None, cases: int = 1) -> None:
        row = self.rows.setdefault(group, Row())
        row.cases += cases
        row.worst = row.worst if row.worst > value else value  # a NaN replaces any number
        row.allowed = allowed

    def merge(self, rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds the rows of another process, given as plain values."""
        for group, row in rows.items():
            self.note(group, **row)

    def plain(self) -> dict[str, dict[str, Any]]:
        """The rows as plain values, as `merge` takes them."""
        return {
            group: {"value": row.worst, "allowed": row.allowed, "cases": row.cases}
            for group, row in self.rows.items()
        }

    def compare(self, group: str, got: Tensor, expected: Tensor, allowed: float) -> None:
        """Notes the largest absolute difference and asserts that it is allowed."""
        assert got.shape == expected.shape
        difference = (got.double() - expected.double()).abs().max().item()
        self.note(group, difference, allowed)
        assert difference <= allowed, f"{group}: {difference:.2e} > {allowed:.0e}"

    def table(self) -> list[str]:
        width = max(map(len, self.rows))
        lines = [f"{'group':{width}}  {'cases':>5}  {'worst':>9}  {'allowed':>9}"]
        for group, row in self.rows.items():
            allowed = "-" if row.allowed is None else f"{row.allowed:.2g}"
            lines.append(f"{group:{width}}  {row.cases:5}  {row.worst:9.2e}  {allowed:>9}")
        return lines
