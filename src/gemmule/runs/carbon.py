"""Energy of a run and its carbon footprint, from the machine's counters or models of its power.

    with EnergyMeter(country="FRA") as meter:
        train()
        meter.reading()        # so far; cheap enough for every checkpoint
    meter.stop().write(layout.carbon)

What cannot be known is None, and `Energy.how` says why: a missing counter never stops a run.
Nothing is written to disk and no socket is opened. carbon.json has what the training loop used; the
run's ledger (runs/ledger) has every activity, killed ones included.
"""

import datetime
import importlib.metadata
import math
import time
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from gemmule.runs.emissions.grid import check_country, grid_of, normalized
from gemmule.runs.emissions.settings import load_footprint
from gemmule.runs.layout import CARBON
from gemmule.runs.power.machine import MachineMeter
from gemmule.runs.schema import Amount, RunFile
from gemmule.runtime.world import World

__all__ = ["Energy", "EnergyMeter", "check_country", "start_tracker", "total"]

JOULES_PER_WH = 3600.0

_JOIN = "; earlier session: "


class Energy(RunFile):
    """The energy a run has used, and how each figure is known: carbon.json.

    Attributes:
        energy_wh: watt-hours; None when not known.
        gco2e: grams of CO2 equivalent; None when not known.
        seconds: wall-clock time of all sessions together.
        grid_gco2e_per_kwh: carbon intensity of the electricity (over several sessions on
            different grids, the mean weighted by energy); None when not known.
        country: ISO 3166 three-letter code; None when not given.
        how: how "cpu", "memory", "gpu", "grid" and "scope" are known.
        tool: name and version of the meter, as in "gemmule 0.1.0"; None when nothing was measured.
        sessions: number of starts that the figures cover; a resumed run has more than one.
    """

    advice: ClassVar[str] = "has the file been changed?"

    energy_wh: Amount | None
    gco2e: Amount | None
    seconds: Amount
    grid_gco2e_per_kwh: Amount | None
    country: str | None
    how: dict[str, str]
    tool: str | None
    sessions: Annotated[int, Field(ge=0)]


class EnergyMeter:
    """Meters the whole machine from `start` to `stop`, and adds what earlier sessions used.

    Args:
        country: ISO 3166 three-letter code of the country whose grid is used; None takes that of
            footprint.toml, or the world's average, and says so.
        previous: content of carbon.json of the run that is resumed.

    Raises:
        ConfigError: for a country that is not in codecarbon's table, or a broken footprint.toml.
        CheckpointError: when `previous` is not the content of a carbon.json.
    """

    def __init__(
        self, country: str | None = None, previous: Mapping[str, Any] | None = None
    ) -> None:
        self.country = normalized(country)
        self._settings = load_footprint()
        self._began = datetime.datetime.now(datetime.UTC)
        grid_of(self.country, self._settings, self._began, self._began)  # an error comes now
        self._previous = None if previous is None else Energy.parse(previous, CARBON)
        self._machine: MachineMeter | None = None
        self._failure = "not measured: the meter was not started"
        self._started: float | None = None
        self._stopped: Energy | None = None

    def __enter__(self) -> Self:
        """Starts."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stops; `stop` called again gives the final figures."""
        self.stop()

    def start(self) -> None:
        """Begins measuring.

        Starting twice does nothing; a stopped meter is not started again.
        """
        if self._started is not None:
            return
        try:
            self._machine = start_tracker()
        except Exception as e:  # a run goes on without a meter
            self._failure = f"not measured: the meter could not start ({_short(e)})"
        self._began = datetime.datetime.now(datetime.UTC)
        self._started = time.monotonic()  # the set-up is not part of the run

    def reading(self) -> Energy:
        """Energy used so far, measured now. Takes milliseconds; safe in the middle of a run."""
        return self._stopped or self._total()

    def stop(self) -> Energy:
        """Takes the last measurement and ends; further calls return the same figures."""
        if self._stopped is None:
            self._stopped = self._total()
            if self._machine is not None:
                self._machine.close()
        return self._stopped

    def _total(self) -> Energy:
        wh: float | None = None
        how = {"cpu": self._failure}
        pue = self._settings.pue or 1.0
        if self._machine is not None:
            joules = self._machine.read()
            how = {**self._machine.how, "scope": scope(pue)}
            if "cpu" in joules:
                wh = sum(joules.values()) * pue / JOULES_PER_WH
                if not (math.isfinite(wh) and wh >= 0):
                    wh, how["cpu"] = None, "not measured: the counter gave no valid figure"
        now = datetime.datetime.now(datetime.UTC)
        grid = grid_of(self.country, self._settings, self._began, now)
        intensity = grid.gco2e_per_kwh
        seconds = time.monotonic() - self._started if self._started is not None else 0.0
        here = Energy(
            energy_wh=wh,
            gco2e=wh * intensity / 1000 if wh is not None and intensity is not None else None,
            seconds=round(seconds, 3),
            grid_gco2e_per_kwh=intensity,
            country=grid.country,
            how={**how, "grid": grid.source},
            tool=_tool() if self._machine is not None else None,
            sessions=int(self._started is not None),
        )
        return here if self._previous is None else total([self._previous, here]) or here


def of_all_machines(meter: EnergyMeter, world: World) -> Energy:
    """The energy of a run so far on all its machines, of each of which the first rank measures.

    Every rank calls this, and the first one's result counts. What is not known of one machine is
    not known of all.
    """
    here = meter.reading()
    if world.size == world.local_size:
        return here
    measures, wh, grams = world.local_rank == 0, here.energy_wh, here.gco2e
    machines, energy, emitted, unknown = world.sum(
        [
            float(measures),
            (wh or 0.0) * measures,
            (grams or 0.0) * measures,
            float(measures and (wh is None or grams is None)),
        ]
    )
    totals = {
        "energy_wh": None if unknown else energy,
        "gco2e": None if unknown else emitted,
        "how": {**here.how, "machines": f"the sum of {machines:.0f}"},
    }
    return Energy(**{**dict(here), **totals})


def start_tracker() -> MachineMeter:
    """A meter of this machine; a test that needs none, or a fake one, replaces this function."""
    return MachineMeter.open()


def scope(pue: float) -> str:
    """What the figures cover."""
    overhead = f"times a PUE of {pue:g}" if pue != 1 else "no data-centre overhead (PUE 1)"
    return f"the whole machine, other programs on it included; {overhead}"


def total(sessions: Iterable[Energy]) -> Energy | None:
    """The energy of several sessions together; None of none.

    What is not known of one session is not known of the sum. Sessions without a start, which used
    nothing, are left out.
    """
    sums: Energy | None = None
    for session in sessions:
        if sums is None or not sums.sessions:
            sums = session
        elif session.sessions:
            sums = _sum(sums, session)
    return sums


def _sum(before: Energy, here: Energy) -> Energy:
    def add(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + b

    wh, grams = add(before.energy_wh, here.energy_wh), add(before.gco2e, here.gco2e)
    grid = here.grid_gco2e_per_kwh
    if wh and grams is not None and grid != before.grid_gco2e_per_kwh:
        grid = grams / wh * 1000
    how = {}
    for part in [*here.how, *(part for part in before.how if part not in here.how)]:
        texts = [here.how.get(part, "not measured"), *before.how.get(part, "").split(_JOIN)]
        how[part] = _JOIN.join(dict.fromkeys(text for text in texts if text))
    return Energy(
        energy_wh=wh,
        gco2e=grams,
        seconds=round(before.seconds + here.seconds, 3),
        grid_gco2e_per_kwh=grid,
        country=here.country,
        how=how,
        tool=here.tool or before.tool,
        sessions=before.sessions + here.sessions,
    )


def _tool() -> str:
    return f"gemmule {importlib.metadata.version('gemmule')}"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
