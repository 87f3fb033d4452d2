"""A line of ledger.jsonl: one activity."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gemmule.runs.emissions.embodied import Embodied
from gemmule.runs.emissions.grid import Grid
from gemmule.runs.schema import Amount, Group, RunFile

FORMAT = 1
JOULES_PER_WH = 3600.0
JOULES_PER_KWH = 3.6e6

COUNTER_ERROR = 0.05
"""Relative error of a counter, RAPL's or a GPU's, taken for its interval."""

MODEL_FACTOR = 2.0
"""Factor by which a modelled figure may be too high or too low."""

FACTORS_FACTOR = 2.0
"""The same of embodied carbon."""

Outcome = Literal["finished", "failed", "stopped", "killed"]

MAKING = frozenset(
    {"tokenizer", "data", "train", "distill", "record", "sft", "reward", "align", "merge",
     "warp", "synthesize", "quantize", "trim", "convert", "quickstart", "ablate", "tasks"}
)  # fmt: skip
"""Kinds of activities that make something; all others use what was made."""


_KINDS = {"rl": "align", "preference": "align", "opd": "align"}


def kind_of(kind: str) -> str:
    """The kind of activity that a kind of run, or command, is."""
    return _KINDS.get(kind, kind)


class Source(Group):
    """Something that an activity used.

    Attributes:
        role: what it was for: "data", "tokenizer", "start", "teacher", "targets" or "model".
        name: its name for people.
        fingerprint: its fingerprint: of weights, of tokenized text, the identity of a logit store.
        run: identifier of its ledger; None when it had none.
        tokens: tokens that were learned from a teacher or its targets; None for other roles.
    """

    role: str
    name: str | None = None
    fingerprint: str | None = None
    run: str | None = None
    tokens: Amount | None = None


class Part(Group):
    """Energy of one part of the machine, as measured or modelled, without the PUE.

    Attributes:
        joules: its energy.
        method: "counter" or "model".
        how: how it is known, for people.
    """

    joules: Amount
    method: Literal["counter", "model"]
    how: str


class Interval(Group):
    """An estimate and the interval that its method gives it."""

    low: Amount
    best: Amount
    high: Amount


class Market(Group):
    """The emission factor of a contract, next to the grid's (GHG Protocol, scope 2)."""

    gco2e_per_kwh: Amount
    source: str


class Water(Group):
    """Water of an activity: E x (site + PUE x grid), liters."""

    liters: Amount
    site_per_kwh: Amount
    grid_per_kwh: Amount


class Devices(Group):
    """What an activity ran on.

    Attributes:
        processor: name of the processor.
        cores: cores that it could use.
        gpus: number of GPUs that it could use.
        node: number of this machine among those of the run.
        nodes: number of machines.
    """

    processor: str
    cores: int
    gpus: int
    node: int
    nodes: int


class Line(RunFile):
    """One activity.

    Attributes:
        format: version of the line's form.
        id: identifier of the activity.
        run: identifier of the ledger that it was written to.
        name: name of that folder.
        kind: what was done.
        outcome: how it ended.
        began: when it began, ISO 8601.
        seconds: how long it took.
        sources: what it used.
        product: fingerprint of what it made; None when it made nothing, or did not finish.
        devices: what it ran on.
        joules: energy by part; empty when nothing is known.
        not_measured: why parts are not known.
        pue: power usage effectiveness that the figures below contain.
        energy_wh: energy with its interval, None when not known.
        grid: carbon intensity, location-based.
        gco2e: operational emissions by the grid; None when not known.
        market: factor of a contract; None without one.
        market_gco2e: operational emissions by the contract; None without one.
        embodied: embodied carbon.
        water: water; None when the factors are not known.
        tokens_in: tokens that were read, or trained on; None when not counted.
        tokens_out: tokens that were written or generated; None when not counted.
        flop: floating-point operations; None when not counted.
        parameters: parameters of the model that was made; None for other things.
        request_joules: energy of a server's requests, a part of `joules`; the rest is idle time.
        boundary: what the figures cover.
    """

    advice: ClassVar[str] = "has the file been changed?"

    format: int = FORMAT
    id: str
    run: str
    name: str
    kind: str
    outcome: Outcome
    began: str
    seconds: Amount
    sources: list[Source]
    product: str | None
    devices: Devices
    joules: dict[str, Part]
    not_measured: dict[str, str]
    pue: Annotated[float | int, Field(ge=1)]
    energy_wh: Interval | None
    grid: Grid
    gco2e: Interval | None
    market: Market | None
    market_gco2e: Amount | None
    embodied: Embodied
    water: Water | None
    tokens_in: Amount | None
    tokens_out: Amount | None
    flop: Amount | None
    parameters: Amount | None = None
    request_joules: Amount | None = None
    boundary: str

    @property
    def total_joules(self) -> float:
        """Energy of all parts, without the PUE; 0 when nothing is known."""
        return float(sum(part.joules for part in self.joules.values()))

    @property
    def makes(self) -> bool:
        """Whether it made something, rather than used it."""
        return self.kind in MAKING


def energy_interval(parts: dict[str, Part], pue: float, missed_seconds: float = 0.0,
                    seconds: float = 0.0) -> Interval | None:  # fmt: skip
    """Watt-hours with their interval; None when no part is known.

    Errors of parts are added, not their squares: those of models go the same way.

    Args:
        parts: energy by part.
        pue: power usage effectiveness.
        missed_seconds: time at the end that may not have been measured, as of a killed activity;
            it counts for the upper end, at the mean power.
        seconds: time that was measured.
    """
    if not parts:
        return None
    best = low = high = 0.0
    for part in parts.values():
        best += part.joules
        counted = part.method == "counter"
        low += part.joules * (1 - COUNTER_ERROR) if counted else part.joules / MODEL_FACTOR
        high += part.joules * (1 + COUNTER_ERROR) if counted else part.joules * MODEL_FACTOR
    if missed_seconds and seconds:
        high *= 1 + missed_seconds / seconds
    factor = pue / JOULES_PER_WH
    return Interval(low=low * factor, best=best * factor, high=high * factor)


def times(interval: Interval | None, factor: float | None) -> Interval | None:
    """An interval times a number; None when either is not known."""
    if interval is None or factor is None:
        return None
    return Interval(
        low=interval.low * factor, best=interval.best * factor, high=interval.high * factor
    )


def summed(intervals: Sequence[Interval | None]) -> Interval | None:
    """The sum of intervals, end by end; None when one is not known, or of none."""
    known = [interval for interval in intervals if interval is not None]
    if not known or len(known) < len(intervals):
        return None
    ends: dict[str, Any] = {
        end: sum(getattr(interval, end) for interval in known) for end in ("low", "best", "high")
    }
    return Interval(**ends)
