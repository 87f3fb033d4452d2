"""Grids, hourly intensity, embodied carbon and the settings of a machine."""

import datetime
from pathlib import Path

import pytest

from gemmule.errors import ConfigError
from gemmule.runs.emissions import embodied as embodied_module
from gemmule.runs.emissions.embodied import embodied
from gemmule.runs.emissions.grid import grid_of, national_grid
from gemmule.runs.emissions.hourly import HourlyGrid, best
from gemmule.runs.emissions.settings import FootprintSettings, load_footprint

UTC = datetime.UTC
NOON = datetime.datetime(2025, 6, 1, 12, tzinfo=UTC)
HOUR = datetime.timedelta(hours=1)


def day(path: Path, values: list[float], header: str = "time,gco2e_per_kwh") -> Path:
    rows = [f"{(NOON + i * HOUR).isoformat()},{value}" for i, value in enumerate(values)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_the_mean_of_an_interval_weights_by_time(tmp_path: Path) -> None:
    grid = HourlyGrid.read(day(tmp_path / "grid.csv", [100, 300, 50]))
    assert grid.mean(NOON, NOON + HOUR) == 100
    assert grid.mean(NOON + HOUR / 2, NOON + 1.5 * HOUR) == 200
    assert grid.mean(NOON + HOUR, NOON + HOUR) == 300
    assert grid.mean(NOON, NOON + 3 * HOUR) == pytest.approx(150)
    assert grid.mean(NOON, NOON + 3.1 * HOUR) is None
    assert grid.mean(NOON - HOUR, NOON) is None


def test_a_mean_is_that_of_its_minutes(tmp_path: Path) -> None:
    values = [100.0, 300.0, 200.0, 800.0, 0.0]
    grid = HourlyGrid.read(day(tmp_path / "grid.csv", values))
    minutes = [value for value in values for _ in range(60)]
    for start in (0, 7, 60, 119, 180):
        for end in (start + 1, 181, 240, 299, 300):
            if end > start:
                a, b = (NOON + datetime.timedelta(minutes=m) for m in (start, end))
                expected = sum(minutes[start:end]) / (end - start)
                assert grid.mean(a, b) == pytest.approx(expected)


def test_a_file_that_is_being_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = day(tmp_path / "grid.csv", [100, 300])
    settings, inside = FootprintSettings(hourly=path), (NOON, NOON + HOUR)
    assert grid_of(None, settings, *inside).gco2e_per_kwh == 100
    path.write_text("time,gco2e")
    assert grid_of(None, settings, *inside).gco2e_per_kwh == 100
    path.unlink()
    assert grid_of(None, settings, *inside).gco2e_per_kwh == 100
    day(path, [400, 300])
    assert grid_of(None, settings, *inside).gco2e_per_kwh == 400
    other = FootprintSettings(hourly=tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="cannot be read"):
        grid_of(None, other, *inside)


def test_the_best_start_is_the_earliest_of_the_lowest(tmp_path: Path) -> None:
    grid = HourlyGrid.read(day(tmp_path / "grid.csv", [300, 100, 100, 300, 100, 100, 300]))
    windows = grid.windows(2 * HOUR, NOON)
    assert best(windows).start == NOON + HOUR
    assert best(windows).gco2e_per_kwh == 100
    assert best(grid.windows(2 * HOUR, NOON + 2 * HOUR)).start == NOON + 4 * HOUR
    assert grid.windows(8 * HOUR, NOON) == []


def test_a_file_of_electricity_maps_is_read(tmp_path: Path) -> None:
    path = tmp_path / "DE.csv"
    path.write_text(
        "Datetime (UTC),Country,Carbon intensity gCO₂eq/kWh (direct)\n"
        "2025-01-01 00:00:00,Germany,250.5\n2025-01-01 01:00:00,Germany,240\n",
        encoding="utf-8",
    )
    start = datetime.datetime(2025, 1, 1, tzinfo=UTC)
    assert HourlyGrid.read(path).mean(start, start + HOUR) == 250.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line must name a column time"),
        ("time,price\n", "it has time, price"),
        ("time,gco2e\n2025-01-01,1\n", "needs at least two rows"),
        ("time,gco2e\n2025-01-01,1\nx,2\n", "line 3: not a time and a number"),
        ("time,gco2e\n2025-01-02,1\n2025-01-01,2\n", "line 3: not after the line before"),
        ("time,gco2e\n2025-01-01,-1\n", "line 2: -1.0 is not an intensity"),
        ("time,gco2e\n2025-01-01,nan\n", "line 2: nan is not an intensity"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        HourlyGrid.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        HourlyGrid.read(tmp_path / "no.csv")


def test_which_grid_goes_before_which(tmp_path: Path) -> None:
    pytest.importorskip("codecarbon")
    hourly = day(tmp_path / "grid.csv", [100, 300])
    settings = FootprintSettings(country="deu", grid=400, grid_year=2024, hourly=hourly)
    inside, outside = (NOON, NOON + HOUR), (NOON - 9 * HOUR, NOON)
    assert grid_of(None, settings, *inside).gco2e_per_kwh == 100
    assert "by the hour" in grid_of("FRA", settings, *inside).source
    given = grid_of(None, settings, *outside)
    assert (given.gco2e_per_kwh, given.year, given.country) == (400, 2024, "DEU")
    assert grid_of("FRA", settings, *outside).country == "FRA"
    national = grid_of(None, FootprintSettings(country="deu"), *outside)
    assert national == national_grid("DEU")
    assert national.year is not None
    world = grid_of(None, FootprintSettings(), *outside)
    assert (world.gco2e_per_kwh, world.year) == (475, 2018)


def test_settings_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert load_footprint() == FootprintSettings()
    monkeypatch.setenv("CODECARBON_PUE", "1.4")
    assert load_footprint().pue == 1.4
    folder = tmp_path / ".config/gemmule"
    folder.mkdir(parents=True)
    (folder / "footprint.toml").write_text('pue = 1.2\nhourly = "grid.csv"\n')
    settings = load_footprint()
    assert (settings.pue, settings.hourly) == (1.2, folder / "grid.csv")
    (folder / "footprint.toml").write_text("puee = 1.2\n")
    with pytest.raises(ConfigError, match="did you mean 'pue'"):
        load_footprint()
    monkeypatch.setenv("GEMMULE_FOOTPRINT", str(tmp_path / "other.toml"))
    with pytest.raises(ConfigError, match=r"other\.toml"):
        load_footprint()


def test_embodied_carbon_of_a_part_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 48 cores for an hour at four years: 0.97 g."""
    monkeypatch.setattr(embodied_module.host, "usable_cores", lambda: 2)
    monkeypatch.setattr(embodied_module.memory, "usable", lambda: 8_000_000_000)
    hour = embodied(3600, [], FootprintSettings())
    assert hour.gco2e == pytest.approx(0.97, abs=0.005)
    monkeypatch.setattr(embodied_module.memory, "usable", lambda: 128_000_000_000)
    assert embodied(3600, [], FootprintSettings()).share == 0.5  # memory is the larger share


def test_embodied_carbon_of_gpus_and_as_given() -> None:
    year = 3600 * 8766.0
    server = embodied(3 * year, ["NVIDIA H100 80GB HBM3"] * 8, FootprintSettings())
    assert server.gco2e == pytest.approx((8 * 164 + 5700) * 1000)
    given = FootprintSettings(embodied_kg=250, lifetime_years=5)
    assert embodied(5 * year, [], given).gco2e == pytest.approx(250_000)
