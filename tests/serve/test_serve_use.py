"""The ledgers of served models: requests and idle time add up to the server's meter."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from test_request_energy import FakeMeter, ledger_of, step

from gemmule.runs import carbon
from gemmule.runs.ledger.activity import activity
from gemmule.runs.ledger.file import read_ledger
from gemmule.runs.power.machine import MachineMeter, Source
from gemmule.serve.energy import EnergyLedger
from gemmule.serve.use import note_use


def run_folder(path: Path) -> Path:
    path.mkdir()
    (path / "manifest.json").write_text("{}")
    return path


def served(energy: EnergyLedger, **places: Path | None) -> Any:
    sources = [SimpleNamespace(name=name, place=place) for name, place in places.items()]
    return SimpleNamespace(observation=SimpleNamespace(energy=energy), sources=sources)


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMeter:
    """One meter of requests and of the activity."""
    meter = FakeMeter()
    sources = {"cpu": [Source(lambda: meter.joules, "counter")]}
    monkeypatch.setattr(carbon, "start_tracker", lambda: MachineMeter(sources, {"cpu": "a fake"}))
    monkeypatch.setenv("HOME", str(tmp_path))
    return meter


def test_two_models_share_a_server(meter: FakeMeter, tmp_path: Path) -> None:
    a, b = run_folder(tmp_path / "a"), run_folder(tmp_path / "b")
    before = meter.joules
    with activity("serve", None):
        energy = ledger_of(meter)
        meter.wait(40)
        energy.begin()
        for tokens in ({1: 9}, {1: 1, 2: 1}, {2: 1}):
            step(energy, meter, 1.0, tokens, *(set(tokens) if len(tokens) == 1 else ()), model="a")
        meter.wait(20)
        energy.begin()
        step(energy, meter, 4.0, {1: 3}, 1, model="b")
        meter.wait(3)
        totals = energy.stop()
        note_use(served(energy, a=a, b=b))
    (first,), (second,) = read_ledger(a), read_ledger(b)
    assert totals.requests is not None
    assert totals.idle is not None
    assert first.request_joules == pytest.approx(30.0)
    assert second.request_joules == pytest.approx(40.0)
    assert first.request_joules + second.request_joules == pytest.approx(totals.requests)
    # The whole server is in the two lines, to the joule.
    assert first.total_joules + second.total_joules == pytest.approx(meter.joules - before)
    idle = [line.total_joules - (line.request_joules or 0.0) for line in (first, second)]
    assert sum(idle) == pytest.approx(totals.idle - 7.0, abs=7.0)
    assert (first.tokens_in, second.tokens_in) == (12, 3)
    assert first.kind == "serve"


def test_a_model_without_a_folder_keeps_its_share(meter: FakeMeter, tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a")
    with activity("serve", None):
        energy = ledger_of(meter)
        step(energy, meter, 1.0, {1: 1}, 1, model="a")
        step(energy, meter, 3.0, {1: 1}, 1, model="hub")
        energy.stop()
        note_use(served(energy, a=a, hub=None))
    (line,) = read_ledger(a)
    assert line.request_joules == pytest.approx(10.0)
    assert line.seconds >= 0


def test_without_a_meter_nothing_is_noted(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a")
    energy = ledger_of(FakeMeter(watts=None))
    with activity("serve", None):
        note_use(served(energy, a=a))
    assert read_ledger(a) == []
