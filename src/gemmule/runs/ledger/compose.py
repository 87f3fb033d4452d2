"""Makes the line of an activity from what was measured, noted and found in its folder's files."""

import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule.errors import UserError
from gemmule.runs import carbon
from gemmule.runs.emissions.embodied import embodied
from gemmule.runs.emissions.grid import grid_of
from gemmule.runs.emissions.settings import FootprintSettings
from gemmule.runs.ledger.facts import Facts, facts_of
from gemmule.runs.ledger.file import own_lines
from gemmule.runs.ledger.line import (
    JOULES_PER_KWH,
    Devices,
    Line,
    Market,
    Outcome,
    Part,
    Source,
    Water,
    energy_interval,
    kind_of,
    times,
)
from gemmule.runtime import host


@dataclasses.dataclass(frozen=True)
class Notes:
    """What is noted of an activity, in place of what its folder's files say.

    Attributes:
        kind: what is done.
        country: ISO 3166 code of the country whose grid is used.
        product: fingerprint of what was made.
        tokens_in: tokens read or trained on.
        tokens_out: tokens written or generated.
        flop: floating-point operations.
        flop_per_token: operations per token of `tokens_in`, where `flop` is not known.
        parameters: parameters of the model that was made.
        sources: further sources.
        shares: parts that belong to the ledgers of other folders.
    """

    kind: str | None = None
    country: str | None = None
    product: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    flop: float | None = None
    flop_per_token: float | None = None
    parameters: int | None = None
    sources: Sequence[Source] = ()
    shares: Mapping[Path, "Share"] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of an activity that belongs to one of several models.

    Attributes:
        fraction: the part of its energy and time.
        tokens_in: tokens that were read with the model; None: the fraction of all.
        tokens_out: tokens that were generated with it; None: the fraction of all.
        request_joules: energy of its requests; None: it was not a server.
    """

    fraction: float
    tokens_in: int | None = None
    tokens_out: int | None = None
    request_joules: float | None = None


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of an activity.

    Attributes:
        began: when it began.
        seconds: how long it took, without activities inside it.
        joules: energy by part, without that of activities inside it.
        methods: how each part's energy comes about.
        how: the same for people, and why parts are not known.
        gpus: names of the GPUs.
    """

    began: datetime.datetime
    seconds: float
    joules: Mapping[str, float]
    methods: Mapping[str, Any]
    how: Mapping[str, str]
    gpus: Sequence[str]


def compose(
    identifier: str,
    kind: str,
    place: Path | None,
    outcome: Outcome,
    measured: Measured,
    notes: Notes,
    settings: FootprintSettings,
) -> Line:
    """The line of an activity.

    Args:
        identifier: identifier of the activity.
        kind: what is done, where nothing else was noted.
        place: the folder that is written; None: none.
        outcome: how it ended.
        measured: what was measured.
        notes: what was noted.
        settings: settings of the machine.
    """
    facts = facts_of(place) if place is not None else Facts()
    devices = _devices(len(measured.gpus))
    first = devices.node == 0  # the others count their energy only, not the run's tokens again
    parts = {
        name: Part(joules=value, method=measured.methods[name], how=measured.how[name])
        for name, value in measured.joules.items()
        if name in measured.methods
    }
    pue = settings.pue or 1.0
    energy = energy_interval(parts, pue) if "cpu" in parts else None
    now = datetime.datetime.now(datetime.UTC)
    grid = grid_of(notes.country, settings, measured.began, now)
    intensity = None if grid.gco2e_per_kwh is None else grid.gco2e_per_kwh / 1000
    tokens_in = notes.tokens_in
    if tokens_in is None and facts.tokens_in is not None:
        tokens_in = max(0, facts.tokens_in - _tokens_of_earlier(place))
    flop = notes.flop
    if flop is None and notes.flop_per_token is not None and tokens_in is not None:
        flop = notes.flop_per_token * tokens_in
    market = None
    if settings.market is not None:
        market = Market(gco2e_per_kwh=settings.market, source=settings.market_source)
    return Line(
        id=identifier,
        run="",
        name=place.name if place is not None else "",
        kind=kind_of(notes.kind or kind),
        outcome=outcome,
        began=measured.began.isoformat(timespec="milliseconds"),
        seconds=round(measured.seconds, 3),
        sources=[_learned(s, tokens_in) for s in (*facts.sources, *notes.sources)],
        product=_first(notes.product, facts.product) if outcome == "finished" else None,
        devices=devices,
        joules=parts,
        not_measured={name: text for name, text in measured.how.items() if name not in parts},
        pue=pue,
        energy_wh=energy,
        grid=grid,
        gco2e=times(energy, intensity),
        market=market,
        market_gco2e=None
        if market is None or energy is None
        else energy.best * market.gco2e_per_kwh / 1000,
        embodied=embodied(measured.seconds, measured.gpus, settings),
        water=_water(parts, pue, settings),
        tokens_in=tokens_in if first else None,
        tokens_out=_first(notes.tokens_out, facts.tokens_out) if first else None,
        flop=flop if first else None,
        parameters=_first(notes.parameters, facts.parameters),
        boundary=carbon.scope(pue),
    )


def share_of(line: Line, name: str, part_of: Share, identifier: str) -> Line:
    """The part of an activity that belongs to one of several folders.

    Args:
        line: the whole.
        name: name of the folder.
        part_of: the part.
        identifier: the part's own identifier.
    """
    share = part_of.fraction

    def part(value: float | None) -> float | None:
        return None if value is None else value * share

    return line.model_copy(
        update={
            "id": identifier,
            "name": name,
            "seconds": line.seconds * share,
            "joules": {
                name: each.model_copy(update={"joules": each.joules * share})
                for name, each in line.joules.items()
            },
            "energy_wh": times(line.energy_wh, share),
            "gco2e": times(line.gco2e, share),
            "market_gco2e": part(line.market_gco2e),
            "embodied": line.embodied.model_copy(update={"gco2e": line.embodied.gco2e * share}),
            "water": None
            if line.water is None
            else line.water.model_copy(update={"liters": line.water.liters * share}),
            "tokens_in": _first(part_of.tokens_in, part(line.tokens_in)),
            "tokens_out": _first(part_of.tokens_out, part(line.tokens_out)),
            "flop": part(line.flop),
            "request_joules": part_of.request_joules,
        }
    )


def _tokens_of_earlier(place: Path | None) -> int:
    """Tokens in the lines of earlier sessions of a run."""
    if place is None:
        return 0
    try:
        return sum(int(line.tokens_in or 0) for line in own_lines(place) if line.makes)
    except UserError:
        return 0


def _learned(source: Source, tokens: int | None) -> Source:
    """A source with the tokens that were learned from it, of a teacher or its targets."""
    if source.role not in ("teacher", "targets") or source.tokens is not None or tokens is None:
        return source
    return source.model_copy(update={"tokens": tokens})


def _water(parts: Mapping[str, Part], pue: float, settings: FootprintSettings) -> Water | None:
    site, grid = settings.water_site, settings.water_grid
    if site is None or grid is None or not parts:
        return None
    kwh = sum(part.joules for part in parts.values()) / JOULES_PER_KWH
    return Water(liters=kwh * (site + pue * grid), site_per_kwh=site, grid_per_kwh=grid)


def _devices(gpus: int) -> Devices:
    """The machine, and which of the run's it is by torchrun's variables."""

    def number(name: str, default: int) -> int:
        text = os.environ.get(name, "")
        return int(text) if text.isdigit() else default

    local = max(1, number("LOCAL_WORLD_SIZE", 1))
    return Devices(
        processor=host.processor(),
        cores=host.usable_cores(),
        gpus=gpus,
        node=number("RANK", 0) // local,
        nodes=max(1, number("WORLD_SIZE", 1) // local),
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
