"""Output to the terminal: progress with rate and time left, tables, durations."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from rich import box
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Called with how much is done, the total (0 while it is unknown), and the unit or the stage
# that is counted.
Progress = Callable[[int, int, str], None]

# sys.stderr is None in a process that was started without one.
_on_terminal = sys.stderr is not None and sys.stderr.isatty()
# What is printed is plain text: brackets and colons in a path are not markup.
console = Console(
    stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=not _on_terminal
)


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 05 s, 2 h 10 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02} s"
    return f"{s // 3600} h {s % 3600 // 60:02} min"


class _RateColumn(rich_progress.ProgressColumn):
    def render(self, task: rich_progress.Task) -> Text:
        return Text(task.fields["rate"])


class ProgressBar:
    """A progress bar with rate and time left; occasional plain lines if this is not a terminal.

    Args:
        label: what is being done.
        total: the amount of work.
        unit: unit of the amount, for the rate.
        start: the amount that was done before, for a resumed run.
    """

    PLAIN_SECONDS = 15.0
    RATE_SECONDS = 20.0  # the rate is that of the last 20 s: it soon forgets compilation

    def __init__(self, label: str, total: float, unit: str, start: float = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._seen = deque([(time.monotonic(), start)])
        self._printed = time.monotonic()
        self._bar: rich_progress.Progress | None = None
        if console.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("{task.description}", markup=False),
                rich_progress.BarColumn(bar_width=24),
                rich_progress.TaskProgressColumn(),
                _RateColumn(),
                rich_progress.TextColumn("{task.fields[note]}", style="dim", markup=False),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(label, total=total, rate="…", note="")
            self._bar.update(self._task, completed=start)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: float, note: str = "", total: float | None = None) -> None:
        """Shows that `done` of the total is done, with a short note such as a loss.

        Args:
            done: the amount that is done.
            note: shown after the rate.
            total: the amount of work, if it is known better by now.
        """
        now = time.monotonic()
        self.total = self.total if total is None else total
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > self.RATE_SECONDS:
            self._seen.popleft()
        if self._bar:
            rate = self._rate()
            self._bar.update(self._task, completed=done, total=self.total, rate=rate, note=note)
        elif now - self._printed >= self.PLAIN_SECONDS:
            self._printed = now
            percent = f"{done / self.total:4.0%}" if self.total else ""
            console.print(f"{self.label} {percent} {self._rate()} {note}".rstrip())

    def _rate(self) -> str:
        (began, before), (now, done) = self._seen[0], self._seen[-1]
        if done <= before or now <= began:
            return "…"
        rate = (done - before) / (now - began)
        shown = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        left = f", {duration((self.total - done) / rate)} left" if done < self.total else ""
        return f"{shown} {self.unit}/s{left}"


@contextmanager
def counting(label: str) -> Iterator[Progress]:
    """A callback that draws a progress bar for each unit once its total is known."""
    bars: dict[str, ProgressBar] = {}
    with ExitStack() as stack:

        def progress(done: int, total: int, unit: str) -> None:
            if total and unit not in bars:
                bars[unit] = stack.enter_context(ProgressBar(label, total, unit, done))
            if total:
                bars[unit].update(done)

        yield progress


@contextmanager
def staged() -> Iterator[Progress]:
    """A callback (bytes done, total, stage) that draws a bar, or a line if there is no total."""
    bar: ProgressBar | None = None
    with ExitStack() as stack:

        def progress(done: int, total: int, stage: str) -> None:
            nonlocal bar
            if not total:
                stack.close()
                console.print(stage, style="dim")
            elif bar is None:
                bar = stack.enter_context(ProgressBar(stage, total / 1e6, "MB", done / 1e6))
            if bar and total:
                bar.update(done / 1e6)

        yield progress


def stage(what: str) -> None:
    """Prints the name of a stage of the work."""
    console.print(what, style="dim", markup=False)


def next_commands(*commands: str) -> None:
    """Prints what a user may want to run next, each command on a line of its own, never wrapped."""
    console.print("next:", *(f"  {line}" for line in commands), sep="\n", soft_wrap=True)


def key_values(rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints names and their values, one pair per line."""
    shown = Table(
        title=title or None, title_justify="left", box=box.SIMPLE, padding=0, pad_edge=False,
        show_header=False,
    )  # fmt: skip
    shown.add_column(no_wrap=True, style="dim")
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(Text(name), Text(value))
    console.print(shown)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Prints a table whose first column is text and whose other columns are numbers."""
    shown = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    for i, header in enumerate(headers):
        shown.add_column(header, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console.print(shown)
