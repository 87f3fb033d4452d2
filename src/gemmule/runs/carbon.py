"""Energy of a run and its carbon footprint, by codecarbon's counters and models, offline.

    with EnergyMeter(country="FRA") as meter:
        train()
        meter.reading()        # so far; cheap enough for every checkpoint
    meter.stop().write(layout.carbon)

What cannot be known is None, and `Energy.how` says why: a missing counter or package never stops a
run. Nothing is written to disk, no socket is opened, and codecarbon is imported by `start` only.
"""

import configparser
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.runs.layout import CARBON
from gemmule.runs.schema import Amount, RunFile

MEASURE_SECONDS = 15.0
"""Time between measurements of a long run; a shorter run is measured at its end."""

_NOT_INSTALLED = 'not measured: pip install "gemmule[carbon]"'
_SECTION = "codecarbon"
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
        tool: name and version of the meter, as in "codecarbon 3.3.2"; None when nothing measured.
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
        country: ISO 3166 three-letter code of the country whose grid is used; None takes the
            world's average grid and says so.
        previous: content of carbon.json of the run that is resumed.

    Raises:
        ConfigError: for a country that is not in codecarbon's table.
        CheckpointError: when `previous` is not the content of a carbon.json.
    """

    def __init__(
        self, country: str | None = None, previous: Mapping[str, Any] | None = None
    ) -> None:
        self.country = _normalized(country)
        self._grid, self._grid_how = _grid(self.country)
        self._previous = None if previous is None else Energy.parse(previous, CARBON)
        self._tracker: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._tool: str | None = None
        self._how = {"cpu": "not measured: the meter was not started"}
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
        """Begins measuring. The first time takes a second or two, to examine the machine.

        Starting twice does nothing; a stopped meter is not started again.
        """
        if self._started is not None:
            return
        self._started = time.monotonic()
        if importlib.util.find_spec("codecarbon") is None:
            self._how = {"cpu": _NOT_INSTALLED}
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations in codecarbon's own code
                if sys.platform != "linux":  # powermetrics and Power Gadget log into a folder
                    self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
                folder = self._folder.name if self._folder else tempfile.gettempdir()
                self._tracker = start_tracker(self._grid, folder)
            self._how = _describe(self._tracker)
            self._tool = f"codecarbon {importlib.metadata.version('codecarbon')}"
        except Exception as e:  # a run goes on without a meter
            self._tracker = None
            self._how = {"cpu": f"not measured: codecarbon could not start ({_short(e)})"}
        self._started = time.monotonic()  # the set-up is not part of the run

    def reading(self) -> Energy:
        """Energy used so far, measured now. Takes milliseconds; safe in the middle of a run."""
        if self._stopped is not None:
            return self._stopped
        if self._tracker is not None:
            self._tracker.flush()
        return self._total()

    def stop(self) -> Energy:
        """Takes the last measurement and ends; further calls return the same figures."""
        if self._stopped is None:
            if self._tracker is not None:
                self._tracker.stop()
            self._stopped = self._total()
            self._tracker = None
            if self._folder is not None:
                self._folder.cleanup()
        return self._stopped

    def _total(self) -> Energy:
        wh: float | None = None
        if self._tracker is not None:
            wh = float(self._tracker.energy_kwh) * 1000
            if not (math.isfinite(wh) and wh >= 0):  # a counter that ran backwards
                wh = None
                self._how = {**self._how, "cpu": "not measured: the counter gave no valid figure"}
        grams = wh * self._grid / 1000 if wh is not None and self._grid is not None else None
        seconds = time.monotonic() - self._started if self._started is not None else 0.0
        here = Energy(
            energy_wh=wh,
            gco2e=grams,
            seconds=round(seconds, 3),
            grid_gco2e_per_kwh=self._grid,
            country=self.country,
            how={**self._how, "grid": self._grid_how},
            tool=self._tool,
            sessions=int(self._started is not None),
        )
        return here if self._previous is None else total([self._previous, here]) or here


def total(sessions: Iterable[Energy]) -> Energy | None:
    """The energy of several sessions together; None of none.

    What is not known of one session is not known of the sum. Sessions without a start, which used
    nothing, are left out.
    """
    sums: Energy | None = None
    for session in sessions:
        if sums is None:
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


@functools.cache
def _table(name: str) -> dict[str, Any] | None:
    """One of codecarbon's data files, read without importing codecarbon; None if not there."""
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "private_infra" / name
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None


def check_country(country: str | None) -> None:
    """Raises a ConfigError for a country that codecarbon's table does not have."""
    _grid(_normalized(country))


def _normalized(country: str | None) -> str | None:
    return country.strip().upper() if country is not None else None


def _grid(country: str | None) -> tuple[float | None, str]:
    """Carbon intensity of a country's electricity, gCO2e/kWh, and how it is known."""
    example = "give a three-letter ISO 3166 code, as in FRA, DEU or USA"
    if country is not None and not (len(country) == 3 and country.isascii() and country.isalpha()):
        raise ConfigError(f"country {country!r} is not a country code: {example}")
    world = _table("carbon_intensity_per_source.json")
    countries = _table("global_energy_mix.json")
    if world is None or countries is None:
        return None, _NOT_INSTALLED
    if country is None:
        grid = float(world["world_average"])
        return grid, (
            f"world average, {grid:g} gCO2e/kWh (IEA 2019, codecarbon's figure): "
            "no country was given"
        )
    if country not in countries:
        hint = nearest(country, list(countries))
        hint = f"{hint} " if hint.startswith("did you mean") else ""
        raise ConfigError(f"no electricity data for country {country!r}; {hint}{example}")
    row = countries[country]
    grid = float(row["carbon_intensity"])
    return grid, (
        f"average of {row['country_name']} in {row['year']}, {grid:g} gCO2e/kWh "
        "(codecarbon's table of national grids)"
    )


class _Ticker:
    """Calls a function at an interval in seconds, from one thread that is started once.

    Takes the place of codecarbon's scheduler, which starts a thread for every tick: where the
    system refuses a single one (seen on a machine short of memory), stopping it waits forever.
    """

    def __init__(self, interval: float, function: Callable[[], object]) -> None:
        self.interval, self.function = interval, function
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def _stopped(self) -> bool:  # read by codecarbon
        return self._thread is None

    def start(self) -> None:
        if self._thread is None:
            self._stop = threading.Event()  # its own: an earlier thread may still see the last one
            self._thread = threading.Thread(
                target=self._run, args=(self._stop,), name="energy", daemon=True
            )
            self._thread.start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self.interval):
            self.function()

    def stop(self) -> None:
        self._stop.set()
        self._thread = None


def start_tracker(grid: float | None, folder: str) -> Any:
    """A running codecarbon tracker that stays silent, offline and without files.

    Settings of the machine that a user gave codecarbon (CPU or memory power, PUE) are kept;
    everything that would write, lock, log or reach out is set here and wins. The one place where
    an EnergyMeter meets codecarbon: a test that needs no meter, or a fake one, replaces it.

    Args:
        grid: carbon intensity of electricity, gCO2e per kWh; None: unknown.
        folder: where codecarbon may keep temporary files.
    """
    import codecarbon
    from codecarbon import emissions_tracker

    vars(emissions_tracker)["get_hierarchical_config"] = _user_settings
    # The import sets the level to INFO, and the constructor speaks before it reads log_level.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)

    class Tracker(codecarbon.OfflineEmissionsTracker):
        """Measures one thread at a time, else a flush during a periodic measurement counts twice.

        Seen in codecarbon 3.3.2: both would bill the time since the same last measurement.
        """

        def __init__(self, **settings: Any) -> None:
            self._one_at_a_time = threading.RLock()
            super().__init__(**settings)

        def _initialize_scheduler_state(self) -> None:
            super()._initialize_scheduler_state()
            for name in ("_scheduler", "_scheduler_monitor_power"):
                theirs = getattr(self, name)
                setattr(self, name, _Ticker(theirs.interval, theirs.function))

        def _measure_power_and_energy(self) -> None:
            with self._one_at_a_time:
                super()._measure_power_and_energy()

        @property
        def energy_kwh(self) -> float:
            with self._one_at_a_time:
                return float(self._total_energy.kWh)

    tracker = Tracker(
        # Only the energy is taken from here: with the intensity forced, neither the country's
        # table (pandas) nor an Electricity Maps token in the user's settings is ever used.
        country_iso_code=None,
        cloud_provider=None,
        cloud_region=None,
        force_carbon_intensity_g_co2e_kwh=grid if grid is not None else 0.0,
        tracking_mode="machine",
        measure_power_secs=MEASURE_SECONDS,
        api_call_interval=-1,
        output_methods=[],
        output_handlers=[],
        emissions_endpoint=None,
        output_dir=folder,
        allow_multiple_runs=True,  # no lock file, and no signal handlers that come with it
        log_level="critical",
        logger_preamble="",
    )
    tracker.start()
    # codecarbon logs its own failures instead of raising them; a running tracker has a start.
    if getattr(tracker, "_start_time", None) is None:
        raise RuntimeError("it stopped during its set-up")
    return tracker


def _user_settings() -> dict[str, str]:
    """The user's settings of codecarbon: of the home folder and of the environment.

    codecarbon itself also reads a file in the current folder, whatever folder that is.
    """
    parser = configparser.ConfigParser()
    with contextlib.suppress(RuntimeError):  # nothing says where the home folder is
        parser.read(Path.home() / ".codecarbon.config")
    settings = dict(parser[_SECTION]) if parser.has_section(_SECTION) else {}
    prefix = f"{_SECTION}_"
    for name, value in os.environ.items():
        if name.lower().startswith(prefix):
            settings[name.lower().removeprefix(prefix)] = value
    return settings


def _describe(tracker: Any) -> dict[str, str]:
    """How each part is known, from what codecarbon chose for this machine."""
    how = {"cpu": "not measured", "memory": "not measured", "gpu": "none found"}
    forced_memory = getattr(tracker, "_force_ram_power", None) is not None
    for part in tracker._hardware:
        kind, chip = type(part).__name__, getattr(part, "chip_part", "")
        if kind == "CPU":
            forced = getattr(tracker, "_force_cpu_power", None)
            how["cpu"] = _describe_cpu(part, forced is not None)
        elif kind == "RAM":
            origin = "codecarbon's settings" if forced_memory else "its size"
            how["memory"] = f"modelled: a constant {part.total_power().W:.3g} W, from {origin}"
        elif kind == "GPU":
            names = tracker._conf.get("gpu_model") or "GPU"
            how["gpu"] = f"measured by the driver's counters ({names})"
        elif kind == "AppleSiliconChip":
            how["gpu" if chip == "GPU" else "cpu"] = (
                f"measured by powermetrics ({part.get_model()})"
            )
        elif kind == "Raspberry":
            how["memory" if chip == "RAM" else "cpu"] = "measured by the board's power controller"
    pue = float(getattr(tracker, "_pue", 1.0))
    overhead = f"times a PUE of {pue:g}" if pue != 1 else "no data-centre overhead (PUE 1)"
    how["scope"] = f"the whole machine, other programs on it included; {overhead}"
    return how


def _describe_cpu(cpu: Any, forced: bool) -> str:
    mode, model, tdp = cpu._mode, cpu._model or "unknown processor", cpu._tdp
    counters = {
        "intel_rapl": "measured by RAPL (the processor's own energy counter)",
        "windows_emi": "measured by the Windows Energy Meter Interface",
        "intel_power_gadget": "measured by Intel Power Gadget",
    }
    if mode in counters:
        return f"{counters[mode]}, {model}"
    threads = cpu._cpu_count
    if forced:
        origin = f"{tdp:g} W from codecarbon's settings"
    elif tdp == 4 * threads:  # codecarbon's DEFAULT_POWER_PER_CORE
        origin = f"{tdp:g} W assumed, 4 W for each of {threads} hardware threads"
    elif getattr(cpu, "_is_generic_tdp", False) or tdp == 85:  # codecarbon's POWER_CONSTANT
        origin = f"{tdp:g} W assumed, codecarbon's figure for an unknown processor"
    else:
        origin = f"{tdp:g} W in codecarbon's table"
    law = {
        "cpu_load": "TDP x (0.1 + 0.9 load^3)",
        "constant": "half the TDP at all times",
    }.get(mode, f"mode {mode}")
    return f"modelled from TDP ({law}; TDP {origin}; {model}): no readable energy counter"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
