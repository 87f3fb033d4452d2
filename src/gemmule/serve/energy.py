"""Energy of each request: the meter's joules, divided among the requests that ran meanwhile.

    ledger = EnergyLedger(EnergyMeter(country="FRA"))
    ledger.start()
    ledger.begin()                                  # before a request is submitted
    ledger.observe_step("student", report, outputs) # after each step of an engine, in its thread
    ledger.take("student", request_id)              # once, after the request's last output

The meter is read at an interval, not at each step. The energy between two readings is divided by
time: a step's seconds count for its requests, by the tokens that each of them ran in it, and the
time without a step is idle. Requests and idle add up to the meter.

A request that ends shortly after a reading is not worth another: it is charged at the power of the
last interval, and the next interval has that much less to divide.
"""

import dataclasses
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from gemmule.infer.core.request import RequestOutput
from gemmule.infer.step_loop import StepReport
from gemmule.runs.carbon import Energy

INTERVAL_SECONDS = 1.0
"""Time between readings while requests run."""

FRESH_SECONDS = 0.25
"""Age up to which a reading is good enough for a request that ends."""

FRESH_SECONDS_AFTER_PAUSE = 0.05
"""The same, if the server was mostly idle before that reading: its power says little."""

MAX_UNTAKEN = 4096
"""Ended requests whose energy is kept until someone asks for it."""

_JOULES_PER_WH = 3600.0
_WH_PER_KWH = 1000.0
_SHARE = (
    "a request's share is the time of its steps, divided by the tokens that each request ran in "
    "them; idle time is not in it"
)

Key = tuple[str, int]  # model, request


class Meter(Protocol):
    """What is needed of `gemmule.runs.carbon.EnergyMeter`."""

    def start(self) -> None:
        """Begins measuring."""

    def reading(self) -> Energy:
        """Energy used since the start."""

    def stop(self) -> Energy:
        """Takes the last reading and ends."""


@dataclass(frozen=True)
class RequestEnergy:
    """Energy of one request.

    Attributes:
        joules: energy; None if it is not measured.
        gco2e: grams of CO2 equivalent; None if it is not known.
        boundary: what the figures cover and how they are known, or why there are none.
    """

    joules: float | None
    gco2e: float | None
    boundary: str

    @classmethod
    def total(cls, parts: Iterable["RequestEnergy"]) -> Self:
        """Energy of one or more requests together; what is not known of one is not of the sum."""
        parts = [*parts]
        return cls(
            _sum(part.joules for part in parts),
            _sum(part.gco2e for part in parts),
            parts[-1].boundary,
        )

    def answer(self) -> dict[str, float | str | None]:
        """`energy` of an answer."""
        return {"joules": self.joules, "gco2e": self.gco2e, "boundary": self.boundary}


@dataclass(frozen=True)
class EnergyTotals:
    """Joules since the start, at the last reading; None if nothing is measured.

    Attributes:
        metered: energy by the meter.
        requests: energy of all requests, ended or not.
        idle: energy of the time in which no step ran.
        gco2e: grams of CO2 equivalent of it all; None if not known.
    """

    metered: float | None
    requests: float | None
    idle: float | None
    gco2e: float | None


@dataclass
class ModelEnergy:
    """What one model used.

    Attributes:
        joules: energy of its requests, those that run included.
        tokens_in: tokens that were run over in steps: of prompts, of outputs, and draft tokens.
        tokens_out: tokens of outputs that ended.
    """

    joules: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0


class EnergyLedger:
    """Divides the energy of one meter among the requests of all engines of a process.

    All methods may be called from any thread.
    """

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts without figures; `start` makes the meter run.

        Args:
            meter: meter of this process; it has not been started.
            clock: clock of the steps, in seconds.
        """
        self._meter, self._clock = meter, clock
        self._lock = threading.Lock()
        self._measures = self._stopped = False
        self._boundary = "not measured: the meter was not started"
        self._grid: float | None = None
        self._read_at = 0.0
        self._metered = 0.0  # joules at the last reading
        self._watts = 0.0  # in the last interval
        self._fresh_seconds = FRESH_SECONDS_AFTER_PAUSE
        self._advance = 0.0  # joules charged since then, before they were metered
        self._requests = self._idle = 0.0
        # Since the last reading: seconds of steps, and those of each request that runs.
        self._busy = 0.0
        self._seconds: dict[Key, float] = {}
        self._joules: dict[Key, float] = {}  # of requests that run, up to the last reading
        self._ended: OrderedDict[Key, float] = OrderedDict()  # waits to be taken
        self._models: dict[str, ModelEnergy] = {}

    def start(self) -> None:
        """Starts the meter, which takes a second or two; requests may run meanwhile."""
        self._boundary = "not measured: the meter was being started when this request ended"
        self._meter.start()
        with self._lock:
            energy = self._meter.reading()
            self._boundary = _describe(energy)
            if energy.energy_wh is None:
                return
            self._grid = energy.grid_gco2e_per_kwh
            self._metered = energy.energy_wh * _JOULES_PER_WH
            # What it used before now belongs to no request.
            self._idle, self._read_at, self._measures = self._metered, self._clock(), True

    def stop(self) -> EnergyTotals:
        """Stops the meter and returns the final figures; the engines have ended."""
        with self._lock:
            self._settle(self._clock())
            self._stopped = True
            self._meter.stop()
            return self._totals()

    def begin(self) -> None:
        """Notes that a request is about to be submitted: what was used until now was idle.

        Without it the request would be charged at the mean power of the pause before it.
        """
        with self._lock:
            now = self._clock()
            if not self._seconds and now - self._read_at > FRESH_SECONDS:
                self._settle(now)

    def observe_step(
        self, model: str, report: StepReport, outputs: Sequence[RequestOutput]
    ) -> None:
        """Takes in a step of a model's engine, and which requests ended with it."""
        with self._lock:
            tokens = sum(report.tokens.values())
            about = self._models.setdefault(model, ModelEnergy())
            about.tokens_in += tokens
            about.tokens_out += sum(
                len(output.completion.ids) for output in outputs if output.completion is not None
            )
            if self._measures and tokens:
                self._busy += report.seconds
                share = report.seconds / tokens
                for request_id, count in report.tokens.items():
                    key = model, request_id
                    self._seconds[key] = self._seconds.get(key, 0.0) + count * share
            age = self._clock() - self._read_at
            ended = [(model, output.request_id) for output in outputs if output.finished]
            if age >= INTERVAL_SECONDS or (ended and age >= self._fresh_seconds):
                self._settle(self._clock())
            for key in ended:
                self._end(key)

    def take(self, model: str, request_id: int) -> RequestEnergy:
        """Returns the energy of a request that has ended, once."""
        with self._lock:
            joules = self._ended.pop((model, request_id), 0.0)
            if not self._measures:
                return RequestEnergy(None, None, self._boundary)
            return RequestEnergy(joules, self._grams(joules), self._boundary)

    def totals(self) -> EnergyTotals:
        """Returns the figures up to the last reading, which is now if no request runs."""
        with self._lock:
            if not self._seconds:
                self._settle(self._clock())
            return self._totals()

    def by_model(self) -> dict[str, ModelEnergy]:
        """Returns what each model used, up to the last reading."""
        with self._lock:
            return {name: dataclasses.replace(about) for name, about in self._models.items()}

    def _settle(self, now: float) -> None:
        """Reads the meter and divides what it has counted since the last reading."""
        elapsed = now - self._read_at
        if not self._measures or self._stopped or elapsed <= 0:
            return
        reading = self._meter.reading()
        if reading.energy_wh is None:  # it has failed
            self._measures, self._boundary = False, _describe(reading)
            return
        metered = reading.energy_wh * _JOULES_PER_WH
        used, self._metered = metered - self._metered, metered
        # Steps of several engines overlap: together they may take longer than the interval.
        self._watts = used / max(elapsed, self._busy)
        paused = self._busy < elapsed / 2
        self._fresh_seconds = FRESH_SECONDS_AFTER_PAUSE if paused else FRESH_SECONDS
        rest = max(0.0, used - self._advance)
        self._advance = max(0.0, self._advance - used)
        idle = max(0.0, elapsed - self._busy)
        total = idle + sum(self._seconds.values())
        per_second = rest / total if total > 0 else 0.0
        charged = 0.0
        for key, seconds in self._seconds.items():
            joules = seconds * per_second
            self._joules[key] = self._joules.get(key, 0.0) + joules
            self._models[key[0]].joules += joules
            self._seconds[key] = 0.0
            charged += joules
        self._requests += charged
        self._idle += rest - charged
        self._read_at, self._busy = now, 0.0

    def _end(self, key: Key) -> None:
        """Closes the account of a request."""
        advance = self._seconds.pop(key, 0.0) * self._watts
        self._advance += advance
        self._requests += advance
        self._models.setdefault(key[0], ModelEnergy()).joules += advance
        self._ended[key] = self._joules.pop(key, 0.0) + advance
        if len(self._ended) > MAX_UNTAKEN:
            self._ended.popitem(last=False)

    def _totals(self) -> EnergyTotals:
        if not self._measures:
            return EnergyTotals(None, None, None, None)
        return EnergyTotals(
            self._metered,
            self._requests - self._advance,
            self._idle,
            self._grams(self._metered),
        )

    def _grams(self, joules: float) -> float | None:
        if self._grid is None:
            return None
        return joules / _JOULES_PER_WH / _WH_PER_KWH * self._grid


def _sum(values: Iterable[float | None]) -> float | None:
    values = [*values]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _describe(energy: Energy) -> str:
    """What a reading covers and how it is known; why there is none."""
    if energy.energy_wh is None:
        return energy.how["cpu"]
    parts = [f"{part}: {how}" for part, how in energy.how.items()]
    return "; ".join([*parts, _SHARE])
