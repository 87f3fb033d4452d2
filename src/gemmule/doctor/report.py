"""What the doctor found: rows, and how they are shown."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gemmule.console import console, duration

PASS, FAIL, WARNING = "pass", "FAIL", "warning"
NOT_TESTED, CANNOT_TELL = "not tested", "cannot tell"
_COLOURS = {PASS: "green", FAIL: "bold red", WARNING: "yellow"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        check: what was looked at.
        result: "pass", "FAIL", "warning", "cannot tell" (the bug would not have shown) or "not
            tested" (the stack offers no way).
        figure: what was measured.
        meaning: what it means, and what to do.
    """

    check: str
    result: str
    figure: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything found about one stack.

    Attributes:
        model: what was examined.
        backend: "gemmule", "transformers" or "openai".
        dtype: of the weights, or what an endpoint was taken to use.
        rows: one for each check.
        seconds: how long it took.
    """

    model: str
    backend: str
    dtype: str
    rows: tuple[Row, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The checks that failed."""
        return [row.check for row in self.rows if row.result == FAIL]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "ok": self.ok, "failed": self.failed}

    def show(self) -> None:
        """Prints the table and a closing line."""
        table = Table(
            title=f"{self.model}, {self.backend}, {self.dtype}",
            title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
        )  # fmt: skip
        for header in ("check", "result", "figure", "what it means"):
            table.add_column(header, no_wrap=header in ("check", "result"), ratio=None)
        for row in self.rows:
            style = _COLOURS.get(row.result, "dim")
            table.add_row(row.check, Text(row.result, style), row.figure, Text(row.meaning))
        console.print(table)
        console.print(f"{summary(self.rows)} in {duration(self.seconds)}")


def summary(rows: Sequence[Row]) -> str:
    """How many rows there are of each result."""
    counts = dict.fromkeys((FAIL, WARNING, PASS, CANNOT_TELL, NOT_TESTED), 0)
    for row in rows:
        counts[row.result] += 1
    return ", ".join(f"{n} {result}" for result, n in counts.items() if n)


def number(x: float) -> str:
    """A figure short enough for the table."""
    if x == 0:
        return "0"
    return f"{x:.0e}".replace("e-0", "e-").replace("e+0", "e+") if x < 0.01 else f"{x:.2g}"
