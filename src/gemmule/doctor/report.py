"""Results of the doctor: one row per check, as a table and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gemmule.console import console, duration

PASS, FAIL, WARNING = "pass", "FAIL", "warning"
NOT_TESTED, CANNOT_TELL = "not tested", "cannot tell"
_COLORS = {PASS: "green", FAIL: "bold red", WARNING: "yellow"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        check: the property that was checked.
        result: "pass", "FAIL", "warning", "cannot tell" (the bug would not have shown) or "not
            tested" (the implementation offers no way to test it).
        figure: the measured value.
        meaning: explanation, and what to do.
    """

    check: str
    result: str
    figure: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class DoctorReport:
    """All checks of one implementation.

    Attributes:
        model: the model that was examined.
        backend: "gemmule", "transformers" or "openai".
        dtype: dtype of the weights; of an endpoint, the dtype that it is assumed to use.
        rows: one row per check.
        seconds: duration.
    """

    model: str
    backend: str
    dtype: str
    rows: tuple[Check, ...]
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
        """The report as JSON."""
        return {**dataclasses.asdict(self), "ok": self.ok, "failed": self.failed}

    def show(self) -> None:
        """Prints the table and a closing line."""
        table = Table(
            title=f"{self.model}, {self.backend}, {self.dtype}",
            title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
        )  # fmt: skip
        for header in ("check", "result", "measured", "meaning"):
            table.add_column(header, no_wrap=header in ("check", "result"), ratio=None)
        for row in self.rows:
            style = _COLORS.get(row.result, "dim")
            table.add_row(row.check, Text(row.result, style), row.figure, Text(row.meaning))
        console.print(table)
        console.print(f"{summary(self.rows)} in {duration(self.seconds)}")


def summary(rows: Sequence[Check]) -> str:
    """Number of rows with each result."""
    counts = dict.fromkeys((FAIL, WARNING, PASS, CANNOT_TELL, NOT_TESTED), 0)
    for row in rows:
        counts[row.result] += 1
    return ", ".join(f"{n} {result}" for result, n in counts.items() if n)


def number(x: float) -> str:
    """A number short enough for the table."""
    if x == 0:
        return "0"
    return f"{x:.0e}".replace("e-0", "e-").replace("e+0", "e+") if x < 0.01 else f"{x:.2g}"
