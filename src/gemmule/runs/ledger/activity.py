"""`activity`: meters what happens inside it, and makes it a line of a ledger.

    with activity("train", run_folder):
        ...
        note(product=fingerprint, flop=flops)

An activity inside another has a line of its own, and the outer one's line has what is left: the
lines of all add up to what the meter of the outermost counted. One inside another for the same
folder is a part of it. Whatever ends an activity, it becomes a line; of one that is killed, its
heartbeat does. A command that is refused at once has computed nothing and leaves no line.
"""

import contextlib
import dataclasses
import datetime
import itertools
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gemmule.console import console
from gemmule.errors import Interrupted, UserError
from gemmule.runs import carbon
from gemmule.runs.emissions.settings import FootprintSettings, load_footprint
from gemmule.runs.ledger import heartbeat
from gemmule.runs.ledger.compose import Measured, Notes, compose, share_of
from gemmule.runs.ledger.facts import facts_of
from gemmule.runs.ledger.file import append, read_ledger
from gemmule.runs.ledger.line import Line, Outcome
from gemmule.runs.power.machine import MachineMeter

_MOST_PULSES = 8

_stack: list["Activity"] = []


class Meter:
    """The meter of an outermost activity and of those inside it.

    Attributes:
        machine: meter of the machine; None when it could not be opened.
        how: how each part is known, or why not.
        settings: settings of the machine.
    """

    def __init__(self) -> None:
        """Opens the meter.

        Raises:
            ConfigError: when footprint.toml is broken.
        """
        self.settings: FootprintSettings = load_footprint()
        self.machine: MachineMeter | None = None
        self.how: dict[str, str] = {}
        try:
            self.machine = carbon.start_tracker()
            self.how = self.machine.how
        except Exception as e:  # an activity goes on without a meter
            reason = f"{type(e).__name__}: {e}"[:200]
            self.how = {"cpu": f"not measured: the meter could not start ({reason})"}

    def read(self) -> dict[str, float]:
        """Joules by part since it was opened; empty when nothing is known."""
        return {} if self.machine is None else self.machine.read()

    def close(self) -> None:
        """Ends readings in the background."""
        if self.machine is not None:
            self.machine.close()


class Activity:
    """One activity that runs. Its methods but `close` may be called from any thread.

    Attributes:
        kind: what is done.
        place: absolute path of the folder that is written; None: none.
        sources: folders of which it is made, besides those that its files name.
        meter: its meter.
        began: when it began.
        notes: what was noted of it.
        dropped: whether it is to leave no line.
    """

    def __init__(
        self,
        kind: str,
        place: Path | None,
        sources: Sequence[Path] = (),
        outer: "Activity | None" = None,
    ) -> None:
        self.kind, self.place, self.sources = kind, place, sources
        self.meter: Meter = outer.meter if outer is not None else Meter()
        self.notes, self.dropped = Notes(), False
        self._id, self._outer = uuid.uuid4().hex, outer
        self.began, self._started = datetime.datetime.now(datetime.UTC), time.monotonic()
        self._at_start = self.meter.read()
        self._lock = threading.Lock()
        self._inner: Activity | None = None  # that runs
        self._past: dict[str, float] = {}  # joules of those that ended, and their seconds
        self._past_seconds = 0.0
        self._final: tuple[dict[str, float], float] | None = None
        self._pulses: list[float] = []
        self._beats: set[tuple[Path, str]] = set()  # heartbeats that are there
        self._waits = False  # its line is kept next to a folder that is not there
        if outer is not None:
            outer._inner = self

    def pulse(self) -> None:
        """Notes that a step has ended, so that it is known how long one takes."""
        self._pulses = [*self._pulses[1 - _MOST_PULSES :], time.monotonic()]

    @property
    def step_seconds(self) -> float:
        """The longest of the last steps, or the one that runs, of the innermost activity."""
        with self._lock:
            inner = self._inner
        if inner is not None:
            return inner.step_seconds
        pulses = [*self._pulses, time.monotonic()] if self._pulses else []
        return max((after - before for before, after in itertools.pairwise(pulses)), default=0.0)

    def used(self) -> tuple[dict[str, float], float]:
        """Joules by part and seconds so far, those of activities inside it included."""
        if self._final is not None:
            return self._final
        now = self.meter.read()
        joules = {name: value - self._at_start.get(name, 0.0) for name, value in now.items()}
        return joules, time.monotonic() - self._started

    def line(self, outcome: Outcome) -> Line:
        """Its line, as of now."""
        with self._lock:
            inner, past, past_seconds = self._inner, dict(self._past), self._past_seconds
        joules, seconds = self.used()
        if inner is not None:
            running, running_seconds = inner.used()
            past_seconds += running_seconds
            for name, value in running.items():
                past[name] = past.get(name, 0.0) + value
        machine = self.meter.machine
        measured = Measured(
            began=self.began,
            seconds=max(0.0, seconds - past_seconds),
            joules={name: max(0.0, v - past.get(name, 0.0)) for name, v in joules.items()},
            methods={} if machine is None else machine.methods,
            how=self.meter.how,
            gpus=() if machine is None else machine.gpus,
        )
        return compose(
            self._id, self.kind, self.place, outcome, measured, self.notes, self.meter.settings
        )

    def beat(self) -> None:
        """Writes its heartbeat, or one for each of its parts."""
        line = self.line("killed")
        for place, part in [] if self.dropped else self._parts(line):
            if heartbeat.write(place, part):
                self._beats.add((place, part.id))

    def close(self, outcome: Outcome) -> None:
        """Ends it, and appends its line to the ledgers that it belongs to.

        Raises:
            OutputError: when the ledger of its own folder cannot be written.
            CheckpointError: when that ledger is broken.
        """
        self._final = self.used()
        written = False
        try:
            written = not self.dropped and self._write(self.line(outcome))
        finally:
            if self._outer is not None:
                self._outer._ended(self, written)
            for place, identifier in set() if self._waits else self._beats:
                heartbeat.remove(place, identifier)

    def _ended(self, inner: "Activity", written: bool) -> None:
        """Leaves the energy of an activity inside this one to that one's line, if there is one."""
        joules, seconds = inner.used()
        with self._lock:
            self._inner = None
            if written:
                self._past_seconds += seconds
                for name, value in joules.items():
                    self._past[name] = self._past.get(name, 0.0) + value

    def _parts(self, line: Line) -> list[tuple[Path, Line]]:
        """The lines for the folders that it belongs to: its own, or those that share it."""
        if self.notes.shares:
            return [
                (place, share_of(line, place.name, share, f"{line.id}-{_digest(place)}"))
                for place, share in self.notes.shares.items()
            ]
        return [] if self.place is None else [(self.place, line)]

    def _write(self, line: Line) -> bool:
        """Appends the line where it belongs; False where there is no place for it."""
        if self.place is None or self.notes.shares:
            for place, part in self._parts(line):
                with contextlib.suppress(UserError):  # where a model's folder is read-only
                    heartbeat.collect(place)
                    append(place, [part])
            return True
        if heartbeat.holds_something(self.place):
            heartbeat.collect(self.place)
            append(self.place, [line])
            append(self.place, self._inherited(self.place))
            return True
        if line.outcome != "finished" and self.used()[1] >= heartbeat.SECONDS:
            self._waits = heartbeat.write(self.place, line, closed=True)
        return self._waits

    def _inherited(self, place: Path) -> list[Line]:
        """The lines of what this was made from."""
        lines: list[Line] = []
        for source in (*facts_of(place).places, *self.sources):
            with contextlib.suppress(UserError):
                lines += read_ledger(source)
        return lines


@contextlib.contextmanager
def activity(
    kind: str,
    place: Path | None,
    *,
    sources: Sequence[Path] = (),
    watch: Callable[[Activity], None] | None = None,
    every: float | None = None,
) -> Iterator[None]:
    """Meters what happens inside, for the ledger of a folder.

    Of several processes of a run on one machine, the first one does it.

    Args:
        kind: what is done, see `line.MAKING`.
        place: the folder, or single file, that is written; it need not be there yet. None: none.
        sources: further folders of which it is made, for those that its files do not name.
        watch: called from time to time, in a thread.
        every: seconds between two calls; None: those between heartbeats.

    Raises:
        OutputError: when what an earlier activity left cannot be put into the ledger.
        CheckpointError: when the ledger is broken.
        ConfigError: when footprint.toml is broken.
    """
    place = None if place is None else place.absolute()
    outer = current()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    if outer is not None and place is not None and outer.place == place:
        note(kind=kind)
        yield
        return
    if place is not None:
        heartbeat.collect(place)
    own = Activity(kind, place, [source.absolute() for source in sources], outer)
    stop = threading.Event()
    thread = threading.Thread(
        target=_beats, args=(own, stop, watch, every), name="ledger", daemon=True
    )
    _stack.append(own)
    thread.start()
    try:
        yield
    except BaseException as e:
        if isinstance(e, UserError) and own.used()[1] < heartbeat.SECONDS:
            own.dropped = True  # refused before anything was computed
        with contextlib.suppress(UserError):  # the first error is the one to tell
            _end(own, stop, thread, _outcome(e))
        raise
    try:
        _end(own, stop, thread, "finished")
    except UserError as e:  # what was made is there: its cost is not worth losing it
        console.print(f"the cost is not in the ledger: {e}", markup=False)


def current() -> Activity | None:
    """The innermost activity of this process."""
    return _stack[-1] if _stack else None


def note(**values: Any) -> None:
    """Notes something of the innermost activity: fields of `Notes`. Nothing without one."""
    if _stack:
        _stack[-1].notes = dataclasses.replace(_stack[-1].notes, **values)


def drop() -> None:
    """Leaves no line of the innermost activity: there was nothing to do."""
    if _stack:
        _stack[-1].dropped = True


def beat() -> None:
    """Writes the innermost activity's heartbeat now: what comes next ends its work.

    A process that is killed between its last result and its line then leaves what it used.
    """
    if _stack:
        _stack[-1].beat()


def pulse() -> None:
    """Notes that a step of the innermost activity has ended."""
    if _stack:
        _stack[-1].pulse()


def _end(own: Activity, stop: threading.Event, thread: threading.Thread, outcome: Outcome) -> None:
    stop.set()
    thread.join()
    _stack.remove(own)
    try:
        own.close(outcome)
    finally:
        if not _stack:
            own.meter.close()


def _beats(
    own: Activity,
    stop: threading.Event,
    watch: Callable[[Activity], None] | None,
    every: float | None,
) -> None:
    """Writes heartbeats and calls `watch`, until it is stopped."""
    last = time.monotonic()
    while not stop.wait(min(every or heartbeat.SECONDS, heartbeat.SECONDS)):
        if watch is not None:
            watch(own)
        if time.monotonic() - last >= heartbeat.SECONDS * 0.99:
            with contextlib.suppress(UserError):
                own.beat()
            last = time.monotonic()


def _digest(place: Path) -> str:
    return f"{zlib.crc32(os.fsencode(place)):08x}"


def _outcome(error: BaseException) -> Outcome:
    if isinstance(error, SystemExit):
        return "finished" if error.code in (None, 0) else "failed"
    stopped = isinstance(error, KeyboardInterrupt | Interrupted | GeneratorExit)
    return "stopped" if stopped else "failed"
