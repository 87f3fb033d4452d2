"""What a user knows about the machine's electricity and hardware: footprint.toml.

    country = "DEU"          # the grid's average, or its intensity by the hour:
    hourly = "grid.csv"
    market = 0               # a contract's factor, next to the grid's
    pue = 1.1

It belongs to the machine, not to a run: the file is ~/.config/gemmule/footprint.toml, or what
GEMMULE_FOOTPRINT names. Without it the world's average grid is taken, and embodied carbon is that
of a reference server (embodied.py).
"""

import os
from pathlib import Path

from pydantic import Field

from gemmule import files
from gemmule.config import Config
from gemmule.runs.power.machine import user_settings

VARIABLE = "GEMMULE_FOOTPRINT"


class FootprintSettings(Config):
    """Settings of the footprint of one machine.

    Attributes:
        country: ISO 3166 three-letter code; a run's own setting goes before it.
        grid: carbon intensity of the electricity, gCO2e per kWh, in place of the country's average.
        grid_year: the year it is of.
        grid_source: where it is from.
        hourly: CSV file of the grid's intensity by the hour, which goes before all others.
        market: emission factor of the electricity's contract, gCO2e per kWh; None: no contract.
        market_source: the contract.
        pue: power usage effectiveness of the data center: energy of the building over that of the
            machines.
        embodied_kg: kgCO2e of making the machine, or the part of it that is used.
        lifetime_years: years that it is used for.
        water_site: liters of water that the site uses per kWh of the machines.
        water_grid: liters of water that the power plants use per kWh.
    """

    country: str | None = None
    grid: float | None = Field(default=None, ge=0, le=5000, allow_inf_nan=False)
    grid_year: int | None = Field(default=None, ge=1990, le=2100)
    grid_source: str = "footprint.toml"
    hourly: Path | None = None
    market: float | None = Field(default=None, ge=0, le=5000, allow_inf_nan=False)
    market_source: str = "footprint.toml"
    pue: float | None = Field(default=None, ge=1, le=5, allow_inf_nan=False)
    embodied_kg: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False)
    lifetime_years: float | None = Field(default=None, gt=0, le=100, allow_inf_nan=False)
    water_site: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    water_grid: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)


def footprint_file() -> Path:
    """The file of settings of this machine, which may not be there."""
    given = os.environ.get(VARIABLE)
    if given:
        return files.expand(given)
    base = os.environ.get("XDG_CONFIG_HOME")
    try:
        folder = Path(base) if base else Path.home() / ".config"
    except RuntimeError:  # nothing says where the home folder is
        folder = Path("/")
    return folder / "gemmule" / "footprint.toml"


def load_footprint() -> FootprintSettings:
    """The settings of this machine; those of codecarbon's `pue` are taken where ours has none.

    Raises:
        ConfigError: for a setting that is not known or out of range, or a file that
            GEMMULE_FOOTPRINT names and that is not there.
    """
    path = footprint_file()
    there = path.is_file() or os.environ.get(VARIABLE)
    settings = FootprintSettings.load(path if there else None)
    if settings.hourly is not None and not settings.hourly.is_absolute():
        settings = settings.model_copy(update={"hourly": path.parent / settings.hourly})
    if settings.pue is None and "pue" in (given := user_settings()):
        checked = FootprintSettings.parse({"pue": _number(given["pue"])}, "codecarbon's pue")
        settings = settings.model_copy(update={"pue": checked.pue})
    return settings


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
