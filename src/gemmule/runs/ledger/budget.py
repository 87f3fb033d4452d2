"""A budget of energy or carbon, which stops a run before it is exceeded.

The run is asked to stop as by SIGTERM: it finishes its step and saves its state. So that even this
stays within the budget, it is asked when what is left is what that takes at the present power.
"""

import dataclasses
import datetime
import os
import signal
from pathlib import Path

from gemmule.errors import ConfigError
from gemmule.runs.emissions.grid import grid_of
from gemmule.runs.ledger import heartbeat
from gemmule.runs.ledger.activity import Activity
from gemmule.runs.ledger.file import own_lines
from gemmule.runs.ledger.line import JOULES_PER_WH, Line

EVERY = 0.5
"""Seconds between looks at what was used."""

_SAVING_SECONDS = 2.0  # taken for saving, which takes a step's time besides


def spent(place: Path) -> tuple[float, float]:
    """Watt-hours and grams of CO2e of all activities of a folder and of those below it, so far.

    Those that were killed and are not in a ledger yet count as well.
    """
    place = place.absolute()
    below = (path for pattern in ("*", "*/*") for path in place.glob(pattern) if path.is_dir())
    lines: dict[str, Line] = {}
    for folder in (place, *below):
        killed = [line for _, line in heartbeat.ended(folder)]
        lines.update((line.id, line) for line in (*own_lines(folder), *killed))
    return (
        sum(line.energy_wh.best for line in lines.values() if line.energy_wh is not None),
        sum(line.gco2e.best for line in lines.values() if line.gco2e is not None),
    )


@dataclasses.dataclass
class Budget:
    """A budget of all sessions of a run together.

    Attributes:
        max_wh: watt-hours that it may use; None: any number.
        max_gco2e: grams of CO2 equivalent that it may cause; None: any number.
        earlier_wh: what earlier sessions used.
        earlier_gco2e: what earlier sessions caused, by the grids that they ran on.
        reached: what was used when it was asked to stop, in words; None before.
    """

    max_wh: float | None
    max_gco2e: float | None
    earlier_wh: float = 0.0
    earlier_gco2e: float = 0.0
    reached: str | None = None

    def begin(self, place: Path) -> None:
        """Takes in what earlier sessions used.

        Raises:
            ConfigError: when a budget is not positive, or used up.
        """
        for name, value in (("--max-wh", self.max_wh), ("--max-gco2e", self.max_gco2e)):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} {value:g} is not a budget: give a number above 0")
        self.earlier_wh, self.earlier_gco2e = spent(place)
        for name, value, used, unit in (
            ("--max-wh", self.max_wh, self.earlier_wh, "Wh"),
            ("--max-gco2e", self.max_gco2e, self.earlier_gco2e, "g CO2e"),
        ):
            if value is not None and used >= value:
                raise ConfigError(
                    f"{name} {value:g} is used up: earlier sessions used {used:.4g} {unit}; "
                    "give a larger budget"
                )

    def watch(self, activity: Activity) -> None:
        """Asks the process to stop when the budget is nearly used up; called in a thread."""
        joules, seconds = activity.used()
        if self.reached is not None or seconds <= 0:
            return
        pue = activity.meter.settings.pue or 1.0
        used = sum(joules.values()) * pue / JOULES_PER_WH
        to_come = used / seconds * (2 * activity.step_seconds + _SAVING_SECONDS + EVERY)
        now = datetime.datetime.now(datetime.UTC)
        grid = grid_of(activity.notes.country, activity.meter.settings, activity.began, now)
        limits = (
            (self.max_wh, self.earlier_wh, 1.0, "Wh"),
            (self.max_gco2e, self.earlier_gco2e, (grid.gco2e_per_kwh or 0.0) / 1000, "g CO2e"),
        )
        for limit, earlier, factor, unit in limits:
            if limit is not None and earlier + (used + to_come) * factor >= limit:
                self.reached = f"{earlier + used * factor:.4g} of {limit:g} {unit}"
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def check_known(self, activity: Activity) -> None:
        """Refuses a budget of something that is not known here.

        Raises:
            ConfigError: when neither counter nor model is there, or no carbon intensity.
        """
        if "cpu" not in activity.used()[0]:
            raise ConfigError(
                f"a budget needs a meter: the processor's energy is {activity.meter.how['cpu']}"
            )
        now = datetime.datetime.now(datetime.UTC)
        grid = grid_of(activity.notes.country, activity.meter.settings, now, now)
        if self.max_gco2e is not None and grid.gco2e_per_kwh is None:
            raise ConfigError(f"--max-gco2e needs the grid's intensity: {grid.source}")
