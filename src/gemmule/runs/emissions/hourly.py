"""The grid's carbon intensity by the hour, from a CSV file: what it was, and when it will be low.

The first column whose name begins with "time" or "date" holds times in ISO 8601 (UTC where no zone
is given), and the first one with "gco2" in its name grams of CO2 equivalent per kWh. Files of
Electricity Maps have this form. A row holds until the next one, the last as long as the one before.
"""

import bisect
import csv
import datetime
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gemmule import files
from gemmule.errors import ConfigError

UTC = datetime.UTC
_STEP = datetime.timedelta(minutes=15)  # between starts that are compared


@dataclass(frozen=True)
class Window:
    """A time to run.

    Attributes:
        start: when to start.
        gco2e_per_kwh: mean intensity while it runs.
    """

    start: datetime.datetime
    gco2e_per_kwh: float


class HourlyGrid:
    """Carbon intensity over time, a step function.

    Attributes:
        path: the file.
        first: when it begins.
        last: when it ends.
    """

    def __init__(
        self, path: Path, times: Sequence[datetime.datetime], values: Sequence[float]
    ) -> None:
        self.path, self._times, self._values = path, list(times), list(values)
        self.first = times[0]
        self.last = times[-1] + (times[-1] - times[-2])

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file.

        Raises:
            ConfigError: when it cannot be read, or a row is not a time and a number in order.
        """
        try:
            text = files.read_text(path)
        except (OSError, ValueError) as e:
            raise ConfigError(f"{path}, the grid's intensity, cannot be read: {e}") from None
        rows = csv.reader(io.StringIO(text))
        names = [_plain(name) for name in next(rows, [])]
        when = next((i for i, n in enumerate(names) if n.startswith(("time", "date"))), None)
        what = next((i for i, n in enumerate(names) if "gco2" in n), None)
        if when is None or what is None:
            raise ConfigError(
                f"{path}: its first line must name a column time and one with gCO2 in its name, as "
                f"in time,gco2e_per_kwh; it has {', '.join(names) or 'nothing'}"
            )
        times: list[datetime.datetime] = []
        values: list[float] = []
        for number, row in enumerate(rows, 2):
            if not any(cell.strip() for cell in row):
                continue
            try:
                time = datetime.datetime.fromisoformat(row[when].strip())
                value = float(row[what])
            except (ValueError, IndexError):
                raise ConfigError(f"{path}, line {number}: not a time and a number") from None
            time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{path}, line {number}: {value} is not an intensity, gCO2e/kWh")
            if times and time <= times[-1]:
                raise ConfigError(f"{path}, line {number}: not after the line before")
            times.append(time)
            values.append(value)
        if len(times) < 2:
            raise ConfigError(f"{path}: needs at least two rows")
        return cls(path, times, values)

    def mean(self, start: datetime.datetime, end: datetime.datetime) -> float | None:
        """Mean intensity from `start` to `end`; None where the file does not cover all of it."""
        if start < self.first or end > self.last or end < start:
            return None
        first = bisect.bisect_right(self._times, start) - 1
        if end == start:
            return self._values[first]
        total, after = 0.0, bisect.bisect_left(self._times, end)
        edges = [start, *self._times[first + 1 : after], end]
        values = self._values[first:after]
        for (left, right), value in zip(itertools.pairwise(edges), values, strict=True):
            total += (right - left).total_seconds() * value
        return total / (end - start).total_seconds()

    def windows(self, duration: datetime.timedelta, not_before: datetime.datetime) -> list[Window]:
        """Each start at which the file covers a run of `duration`, a quarter of an hour apart.

        Args:
            duration: how long it runs.
            not_before: earliest start.
        """
        start, result = max(self.first, not_before), []
        while (value := self.mean(start, start + duration)) is not None:
            result.append(Window(start, value))
            start += _STEP
        return result


def best(windows: Sequence[Window]) -> Window:
    """The window of the lowest intensity, the earliest of several."""
    return min(windows, key=lambda window: (window.gco2e_per_kwh, window.start))


def _plain(name: str) -> str:
    return name.strip().lower().replace("\N{SUBSCRIPT TWO}", "2")
