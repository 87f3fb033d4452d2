import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmule.errors import CheckpointError, ConfigError
from gemmule.runs import carbon
from gemmule.runs.carbon import Energy, EnergyMeter

needs_codecarbon = pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None, reason="needs the extra carbon"
)


@pytest.fixture
def no_codecarbon(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        carbon.importlib.util,
        "find_spec",
        lambda name: None if name == "codecarbon" else real(name),
    )
    carbon._table.cache_clear()
    yield
    carbon._table.cache_clear()


def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


@needs_codecarbon
def test_a_short_run_gets_figures_and_leaves_no_trace(tmp_path, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    # A user's codecarbon settings must not make it talk, write or lock.
    for key, value in {
        "ELECTRICITYMAPS_API_TOKEN": "token",
        "CO2_SIGNAL_API_TOKEN": "token",
        "EMISSIONS_ENDPOINT": "http://localhost:1/",
        "OUTPUT_METHODS": "csv,api",
        "ALLOW_MULTIPLE_RUNS": "false",
        "LOG_LEVEL": "debug",
        "CLOUD_PROVIDER": "aws",
        "OUTPUT_DIR": "/nowhere",
    }.items():
        monkeypatch.setenv(f"CODECARBON_{key}", value)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with EnergyMeter("fra") as meter:
        other = EnergyMeter()  # a second run at the same time
        other.start()
        busy(0.3)
        first = meter.reading()
        busy(0.2)
        assert other.stop().energy_wh > 0
    end = meter.stop()
    assert 0 < first.energy_wh <= end.energy_wh
    assert end.seconds >= 0.5
    assert end.tool.startswith("codecarbon ")
    assert end.country == "FRA"
    assert end.gco2e == pytest.approx(end.energy_wh * end.grid_gco2e_per_kwh / 1000)
    assert "France" in end.how["grid"]
    assert any(word in end.how["cpu"] for word in ("measured by", "modelled from TDP"))
    assert {"cpu", "memory", "gpu", "grid", "scope"} == set(end.how)
    assert meter.stop() == end == meter.reading()
    assert Energy.parse(json.loads(json.dumps(end.to_json())), "carbon.json") == end
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert list(tmp_path.iterdir()) == []
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
    for timer in [t for t in threading.enumerate() if isinstance(t, threading.Timer)]:
        timer.join(5)  # cancelled, so it ends at once instead of after its interval
        assert not timer.is_alive()


@needs_codecarbon
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


def test_without_codecarbon_nothing_fails_and_the_reason_is_given(no_codecarbon):
    with EnergyMeter("FRA") as meter:
        assert meter.reading().energy_wh is None
    end = meter.stop()
    assert (end.energy_wh, end.gco2e, end.grid_gco2e_per_kwh, end.tool) == (None,) * 4
    assert end.sessions == 1
    assert 'pip install "gemmule[carbon]"' in end.how["cpu"]


@needs_codecarbon
def test_a_codecarbon_that_breaks_costs_only_the_figures(monkeypatch):
    def broken(grid, folder):
        raise RuntimeError("no such counter")

    monkeypatch.setattr(carbon, "start_tracker", broken)
    with EnergyMeter() as meter:
        end = meter.stop()
    assert end.energy_wh is None
    assert end.tool is None
    assert "no such counter" in end.how["cpu"]


class FakeTracker:
    energy_kwh = 0.25

    def flush(self):
        pass

    def stop(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(carbon, "start_tracker", lambda grid, folder: FakeTracker())
    monkeypatch.setattr(carbon, "_describe", lambda tracker: {"cpu": "measured by a fake"})


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


@needs_codecarbon
def test_a_counter_that_runs_backwards_gives_no_figure(fake, monkeypatch):
    monkeypatch.setattr(FakeTracker, "energy_kwh", -1.0)
    with EnergyMeter() as meter:
        end = meter.stop()
    assert end.energy_wh is None
    assert "no valid figure" in end.how["cpu"]


@needs_codecarbon
def test_a_flush_waits_for_a_measurement_under_way(monkeypatch):
    from codecarbon.emissions_tracker import BaseEmissionsTracker

    inside, most = 0, 0
    lock = threading.Lock()

    def slow(self):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with lock:
            inside -= 1

    with EnergyMeter() as meter:
        monkeypatch.setattr(BaseEmissionsTracker, "_measure_power_and_energy", slow)
        tracker = meter._tracker
        threads = [threading.Thread(target=tracker._measure_power_and_energy) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1


def cpu(mode, tdp, **more):
    return type("CPU", (), {"_mode": mode, "_model": "X", "_tdp": tdp, "_cpu_count": 2, **more})()


@pytest.mark.parametrize(
    ("part", "settings", "text"),
    [
        (cpu("intel_rapl", 85), {}, "measured by RAPL"),
        (cpu("cpu_load", 8), {}, "TDP 8 W assumed, 4 W for each of 2 hardware threads"),
        (cpu("cpu_load", 85), {}, "figure for an unknown processor"),
        (cpu("cpu_load", 65), {}, "TDP 65 W in codecarbon's table"),
        (cpu("cpu_load", 30), {"_force_cpu_power": 30}, "30 W from codecarbon's settings"),
        (cpu("constant", 65), {}, "half the TDP at all times"),
    ],
)
def test_how_the_processor_is_known(part, settings, text):
    tracker = SimpleNamespace(_hardware=[part], _conf={}, **settings)
    how = carbon._describe(tracker)
    assert text in how["cpu"]
    assert how["memory"] == "not measured"


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
        "import sys, gemmule.runs.carbon as c; c.EnergyMeter('FRA').reading(); "
        "sys.exit(', '.join({'codecarbon', 'pandas', 'torch', 'requests'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_codecarbon
def test_nothing_is_printed_by_a_fresh_process(tmp_path):
    code = (
        "from gemmule.runs.carbon import EnergyMeter\n"
        "with EnergyMeter('DEU') as m: m.reading()\n"
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
