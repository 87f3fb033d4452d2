import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmule.errors import CheckpointError, ConfigError
from gemmule.runs import carbon
from gemmule.runs.carbon import Energy, EnergyMeter
from gemmule.runs.emissions import grid
from gemmule.runs.power.machine import MachineMeter, Source

needs_codecarbon = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None, reason="needs the extra carbon"
)


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def test_a_short_run_gets_figures_and_leaves_no_trace(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with EnergyMeter() as meter:
        other = EnergyMeter()  # a second run at the same time
        other.start()
        busy(0.2)
        first = meter.reading()
        busy(0.1)
        assert other.stop().energy_wh > 0
    end = meter.stop()
    assert 0 < first.energy_wh <= end.energy_wh
    assert end.seconds >= 0.3
    assert end.tool.startswith("gemmule ")
    assert end.gco2e == pytest.approx(end.energy_wh * end.grid_gco2e_per_kwh / 1000)
    assert any(word in end.how["cpu"] for word in ("measured by RAPL", "modelled from TDP"))
    assert {"cpu", "memory", "gpu", "grid", "scope"} == set(end.how)
    assert meter.stop() == end == meter.reading()
    assert Energy.parse(json.loads(json.dumps(end.to_json())), "carbon.json") == end
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert list(tmp_path.iterdir()) == []
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_without_a_country_the_world_average_is_named():
    energy = EnergyMeter().reading()
    assert energy.grid_gco2e_per_kwh == 475
    assert "world average" in energy.how["grid"]
    assert energy.energy_wh is None  # not started: nothing is claimed
    assert energy.sessions == 0


@needs_codecarbon
@pytest.mark.parametrize("code", ["XXX", "france", "FR", "", "F1A", "ÄÖÜ"])
def test_an_unknown_country_is_an_error_with_an_example(code):
    with pytest.raises(ConfigError, match="as in FRA, DEU or USA"):
        EnergyMeter(code)


def test_without_codecarbon_only_the_countries_are_missing(monkeypatch):
    monkeypatch.setattr(grid, "_table", lambda: None)
    with EnergyMeter("FRA") as meter:
        end = meter.stop()
    assert end.energy_wh >= 0
    assert (end.gco2e, end.grid_gco2e_per_kwh, end.country) == (None, None, "FRA")
    assert 'pip install "gemmule[carbon]"' in end.how["grid"]
    assert EnergyMeter().reading().grid_gco2e_per_kwh == 475


def test_a_meter_that_breaks_costs_only_the_figures(monkeypatch):
    def broken():
        raise RuntimeError("no such counter")

    monkeypatch.setattr(carbon, "start_tracker", broken)
    with EnergyMeter() as meter:
        end = meter.stop()
    assert end.energy_wh is None
    assert end.tool is None
    assert "no such counter" in end.how["cpu"]


@pytest.fixture
def fake(monkeypatch):
    """A machine that has used 900 kJ at its first reading."""
    sources = {"cpu": [Source(lambda: 900e3, "counter")]}
    monkeypatch.setattr(
        carbon, "start_tracker", lambda: MachineMeter(sources, {"cpu": "measured by a fake"})
    )


@needs_codecarbon
def test_resumed_sessions_add_up(fake):
    with EnergyMeter("FRA") as meter:
        one = meter.stop()
    assert one.energy_wh == 250
    with EnergyMeter("POL", previous=one.to_json()) as meter:
        two = meter.stop()
    assert two.energy_wh == 500
    assert two.sessions == 2
    assert two.seconds >= one.seconds
    fra, pol = (EnergyMeter(c).reading().grid_gco2e_per_kwh for c in ("FRA", "POL"))
    assert two.gco2e == pytest.approx((fra + pol) / 4)
    assert two.grid_gco2e_per_kwh == pytest.approx((fra + pol) / 2)
    assert two.how["cpu"] == "measured by a fake"
    assert "Poland" in two.how["grid"]
    assert "earlier session: average of France" in two.how["grid"]
    with EnergyMeter("POL", previous=two.to_json()) as meter:
        three = meter.stop()
    assert three.how == two.how  # the list of ways does not grow with every resume


@needs_codecarbon
def test_a_session_that_is_not_known_makes_the_total_not_known(fake):
    with EnergyMeter("FRA") as meter:
        one = meter.stop().to_json() | {"energy_wh": None, "gco2e": None}
    with EnergyMeter("FRA", previous=one) as meter:
        two = meter.stop()
    assert two.energy_wh is None
    assert two.gco2e is None
    assert two.sessions == 2


def test_a_counter_that_runs_backwards_gives_no_figure(monkeypatch):
    sources = {"cpu": [Source(lambda: -1.0, "counter")]}
    monkeypatch.setattr(carbon, "start_tracker", lambda: MachineMeter(sources, {"cpu": "fake"}))
    with EnergyMeter() as meter:
        end = meter.stop()
    assert end.energy_wh is None
    assert "no valid figure" in end.how["cpu"]


amounts = st.none() | st.floats(0, 1e9)


@given(
    st.builds(
        Energy,
        energy_wh=amounts,
        gco2e=amounts,
        seconds=st.floats(0, 1e9),
        grid_gco2e_per_kwh=amounts,
        country=st.none() | st.text(),
        how=st.dictionaries(st.text(), st.text()),
        tool=st.none() | st.text(),
        sessions=st.integers(0, 99),
    )
)
def test_carbon_json_round_trips(energy):
    assert Energy.parse(json.loads(json.dumps(energy.to_json())), "carbon.json") == energy


@pytest.mark.parametrize(
    "change",
    [
        {"energy_wh": "1"},
        {"energy_wh": -1.0},
        {"gco2e": float("nan")},
        {"seconds": None},
        {"seconds": True},
        {"how": []},
        {"how": {"cpu": 1}},
        {"sessions": 1.5},
        {"tool": 3},
    ],
)
def test_a_broken_carbon_json_is_named(change):
    good = {
        "energy_wh": 1.0, "gco2e": 1.0, "seconds": 1.0, "grid_gco2e_per_kwh": 475.0,
        "country": None, "how": {}, "tool": None, "sessions": 1,
    }  # fmt: skip
    Energy.parse(good, "carbon.json")
    with pytest.raises(CheckpointError, match=rf"carbon.json: {next(iter(change))}(\.cpu)? is "):
        Energy.parse(good | change, "carbon.json")
    with pytest.raises(CheckpointError, match=r"carbon\.json: how is missing"):
        Energy.parse({k: v for k, v in good.items() if k != "how"}, "carbon.json")


def test_importing_it_is_light():
    code = (
        "import sys, gemmule.runs.carbon as c; c.EnergyMeter().reading(); "
        "sys.exit(', '.join({'codecarbon', 'pandas', 'torch', 'requests'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_is_printed_by_a_fresh_process(tmp_path):
    code = (
        "from gemmule.runs.carbon import EnergyMeter\n"
        "with EnergyMeter() as m: m.reading()\n"
        "assert m.stop().energy_wh is not None"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "CODECARBON_LOG_LEVEL": "debug"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
