"""Carbon intensity of electricity: by the hour, as given, of a country, or of the world.

National averages are codecarbon's table, from Our World in Data, read without importing codecarbon;
each has its year. No request leaves the machine.
"""

import datetime
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.runs.emissions.hourly import HourlyGrid
from gemmule.runs.emissions.settings import FootprintSettings
from gemmule.runs.schema import Amount, Group

WORLD = 475.0
"""World average in gCO2e/kWh, 2018: IEA, Global Energy and CO2 Status Report 2019."""

NOT_INSTALLED = 'no table of national grids: pip install "gemmule[carbon]"'


class Grid(Group):
    """Carbon intensity of the electricity of an activity.

    Attributes:
        gco2e_per_kwh: grams of CO2 equivalent per kWh; None when not known.
        country: ISO 3166 three-letter code; None when not given.
        year: the year it is of; None when not known.
        source: where it is from, for people.
    """

    gco2e_per_kwh: Amount | None
    country: str | None
    year: int | None
    source: str


def normalized(country: str | None) -> str | None:
    """A country's code as the table has it."""
    return country.strip().upper() if country is not None else None


def check_country(country: str | None) -> None:
    """Raises a ConfigError for a country that codecarbon's table does not have."""
    national_grid(country)


def national_grid(country: str | None) -> Grid:
    """The average of a country; of the world without one.

    Raises:
        ConfigError: for a country that is not in the table.
    """
    example = "give a three-letter ISO 3166 code, as in FRA, DEU or USA"
    country = normalized(country)
    if country is None:
        source = f"world average, {WORLD:g} gCO2e/kWh (IEA 2019): no country was given"
        return Grid(gco2e_per_kwh=WORLD, country=None, year=2018, source=source)
    if not (len(country) == 3 and country.isascii() and country.isalpha()):
        raise ConfigError(f"country {country!r} is not a country code: {example}")
    countries = _table()
    if countries is None:
        return Grid(gco2e_per_kwh=None, country=country, year=None, source=NOT_INSTALLED)
    if country not in countries:
        hint = nearest(country, list(countries))
        hint = f"{hint} " if hint.startswith("did you mean") else ""
        raise ConfigError(f"no electricity data for country {country!r}; {hint}{example}")
    row = countries[country]
    value, year = float(row["carbon_intensity"]), int(row["year"])
    source = (
        f"average of {row['country_name']} in {year}, {value:g} gCO2e/kWh "
        "(codecarbon's table of national grids)"
    )
    return Grid(gco2e_per_kwh=value, country=country, year=year, source=source)


def grid_of(
    country: str | None,
    settings: FootprintSettings,
    began: datetime.datetime,
    ended: datetime.datetime,
) -> Grid:
    """The intensity of the electricity that something ran on.

    The hourly file if it covers the time; else the average of the country that was asked for, the
    factor in the settings, the average of the country in the settings, the world's.

    Args:
        country: the run's own setting.
        settings: settings of the machine.
        began: when it began.
        ended: when it ended, or now.

    Raises:
        ConfigError: for a country that is not in the table, or an hourly file that is broken.
    """
    place = normalized(settings.country if country is None else country)
    if settings.hourly is not None:
        value = _hourly(settings.hourly).mean(began, ended)
        if value is not None:
            source = f"by the hour, {value:.4g} gCO2e/kWh ({settings.hourly.name})"
            return Grid(gco2e_per_kwh=value, country=place, year=began.year, source=source)
    if country is None and settings.grid is not None:
        source = f"{settings.grid:g} gCO2e/kWh ({settings.grid_source})"
        year = settings.grid_year
        return Grid(gco2e_per_kwh=settings.grid, country=place, year=year, source=source)
    return national_grid(place)


_hourly_files: dict[Path, tuple[int, HourlyGrid]] = {}  # with the time of the last change


def _hourly(path: Path) -> HourlyGrid:
    """The content of an hourly file, read again when it has changed.

    A file that is being replaced while something runs stays as it was: a run does not end by it.
    """
    known = _hourly_files.get(path)
    try:
        changed = path.stat().st_mtime_ns
        if known is None or known[0] != changed:
            _hourly_files[path] = known = changed, HourlyGrid.read(path)
    except (OSError, ConfigError):
        if known is None:
            return HourlyGrid.read(path)
    return known[1]


@functools.cache
def _table() -> dict[str, Any] | None:
    """Codecarbon's table of countries; None if it is not there."""
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "private_infra" / "global_energy_mix.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None
