"""A budget stops a run before it is exceeded, and hours of the grid say when to start."""

import datetime
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_machine import FakeMachine, line
from gemmule.errors import ConfigError
from gemmule.runs import carbon
from gemmule.runs.emissions.settings import FootprintSettings
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.ledger import heartbeat
from gemmule.runs.ledger.activity import activity
from gemmule.runs.ledger.budget import EVERY, Budget, spent
from gemmule.runs.ledger.file import append, read_ledger
from gemmule.runs.ledger.line import times


class FakeActivity:
    """A run at constant power, in steps of one length."""

    def __init__(self, watts: float, step: float, pue: float = 1.0) -> None:
        self.watts, self.step_seconds, self.seconds = watts, step, 0.0
        self.meter: Any = SimpleNamespace(settings=FootprintSettings(pue=pue, grid=500.0))
        self.notes: Any = SimpleNamespace(country=None)
        self.began = datetime.datetime.now(datetime.UTC)

    def used(self) -> tuple[dict[str, float], float]:
        return {"cpu": self.watts * self.seconds}, self.seconds


@given(
    watts=st.floats(1, 10_000),
    step=st.floats(0.01, 60),
    hours=st.floats(0.05, 5),
    pue=st.floats(1, 2),
    earlier=st.floats(0, 0.9),
)
def test_a_run_ends_within_its_budget(
    watts: float, step: float, hours: float, pue: float, earlier: float
) -> None:
    """The step that runs is finished, and saving takes a step's time and two seconds."""
    max_wh = watts * hours * pue / (1 - earlier)
    run = FakeActivity(watts, step, pue)
    budget = Budget(max_wh, None, earlier_wh=earlier * max_wh)
    asked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: asked.append(number))
        # The budget is not reached a moment before; the look after that is the one that asks.
        most = 3600 * hours
        run.seconds = max(0.0, most - 2 * step - 2 - 3 * EVERY)
        while not asked:
            run.seconds += EVERY
            budget.watch(run)  # type: ignore[arg-type]
        assert asked == [signal.SIGTERM]
        budget.watch(run)  # type: ignore[arg-type]
        assert asked == [signal.SIGTERM]  # once
    run.seconds += step + step + 2
    total = budget.earlier_wh + run.used()[0]["cpu"] * pue / 3600
    assert total <= max_wh * (1 + 1e-9)
    assert budget.reached is not None


def test_grams_are_counted_by_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: asked.append(number))
    run, budget = FakeActivity(3600.0, 0.0), Budget(None, 50.0)  # 100 Wh at 500 g per kWh
    run.seconds = 90.0
    budget.watch(run)  # type: ignore[arg-type]
    assert not asked
    run.seconds = 98.0
    budget.watch(run)  # type: ignore[arg-type]
    assert asked
    assert budget.reached == "49 of 50 g CO2e"


def test_all_sessions_and_everything_below_count(tmp_path: Path) -> None:
    for name, identifier in (("quickstart", "a"), ("quickstart/teacher", "b")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").touch()
        append(folder, [line(identifier), line(f"{identifier}-failed", outcome="failed")])
    append(tmp_path / "quickstart", read_ledger(tmp_path / "quickstart/teacher"))  # copies
    assert spent(tmp_path / "quickstart") == pytest.approx((4.0, 2.0))
    with pytest.raises(ConfigError, match="--max-wh 4 is used up: earlier sessions used 4 Wh"):
        Budget(4.0, None).begin(tmp_path / "quickstart")
    with pytest.raises(ConfigError, match=r"--max-gco2e 2 is used up: .* used 2 g CO2e"):
        Budget(None, 2.0).begin(tmp_path / "quickstart")


def test_earlier_grams_are_those_of_their_grid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """100 Wh at 1,000 g per kWh before, and 100 at 500 now: 150 g."""
    (tmp_path / "file").touch()
    earlier = line("a", 360_000.0)
    assert earlier.energy_wh is not None
    append(tmp_path, [earlier.model_copy(update={"gco2e": times(earlier.energy_wh, 1.0)})])
    monkeypatch.setattr(os, "kill", lambda *_: None)
    run, budget = FakeActivity(3600.0, 0.0), Budget(None, 150.0)
    budget.begin(tmp_path)
    run.seconds = 90.0
    budget.watch(run)  # type: ignore[arg-type]
    assert budget.reached is None
    run.seconds = 98.0
    budget.watch(run)  # type: ignore[arg-type]
    assert budget.reached == "149 of 150 g CO2e"


def test_a_killed_session_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its line is not in the ledger before the next session."""
    monkeypatch.setattr(heartbeat, "_this_process", lambda: {"pid": None, "host": None})
    monkeypatch.setattr(heartbeat, "_STALE_SECONDS", -1.0)
    for folder in (tmp_path / "run", tmp_path / "run/teacher"):
        assert heartbeat.write(folder, line(folder.name))
        folder.mkdir()
    assert spent(tmp_path / "run") == pytest.approx((2.0, 1.0))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_budget_is_positive(value: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a number above 0"):
        Budget(None, value).begin(tmp_path)


def test_a_budget_of_what_is_not_known_is_refused(no_meter: None, tmp_path: Path) -> None:
    with activity("train", None):
        current = ledger.current()
        assert current is not None
        with pytest.raises(ConfigError, match=r"a budget needs a meter: .*left out by the test"):
            Budget(1.0, None).check_known(current)


def test_a_step_is_known_while_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(carbon, "start_tracker", FakeMachine().open)
    now = [0.0]
    monkeypatch.setattr(ledger.time, "monotonic", lambda: now[0])
    outer = ledger.Activity("quickstart", None)
    own = ledger.Activity("train", None, outer=outer)
    assert own.step_seconds == 0.0
    for now[0] in (1.0, 2.0, 5.0, 6.0):
        own.pulse()
    assert own.step_seconds == 3.0
    now[0] = 20.0
    assert own.step_seconds == outer.step_seconds == 14.0
