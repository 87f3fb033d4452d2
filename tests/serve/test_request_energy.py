"""Energy of requests: what a fake meter counts is divided without loss."""

import random
from collections.abc import Mapping

import pytest

from gemmule.infer.core.request import Completion, RequestOutput
from gemmule.infer.step_loop import StepReport
from gemmule.runs.carbon import Energy
from gemmule.serve.energy import MAX_UNTAKEN, EnergyLedger, EnergyTotals


class FakeMeter:
    """Counts `watts` over its own time, which is the steps' clock too."""

    def __init__(self, *, watts: float | None = 10.0, grid: float | None = 100.0) -> None:
        self.now, self.watts, self.grid = 100.0, watts, grid
        self.joules = 7.0  # what the meter's own start used
        self.readings = 0

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float, watts: float | None = None) -> None:
        self.now += seconds
        self.joules += seconds * (self.watts or 0.0 if watts is None else watts)

    def start(self) -> None:
        """Needs nothing."""

    def stop(self) -> Energy:
        return self.reading()

    def reading(self) -> Energy:
        self.readings += 1
        measured = self.watts is not None
        return Energy(
            energy_wh=self.joules / 3600 if measured else None,
            gco2e=None,
            seconds=self.now,
            grid_gco2e_per_kwh=self.grid,
            country=None,
            how={"cpu": "measured by a fake counter" if measured else "not measured: no counter"},
            tool=None,
            sessions=1,
        )


def ledger_of(meter: FakeMeter) -> EnergyLedger:
    ledger = EnergyLedger(meter, meter.clock)
    ledger.start()
    return ledger


def ends(*request_ids: int) -> list[RequestOutput]:
    done = Completion("", (), "stop")
    return [RequestOutput(request_id, "", (), completion=done) for request_id in request_ids]


def step(
    ledger: EnergyLedger,
    meter: FakeMeter,
    seconds: float,
    tokens: Mapping[int, int],
    *ended: int,
    model: str = "m",
    watts: float | None = None,
) -> None:
    started = meter.now
    meter.wait(seconds, watts)
    ledger.observe_step(model, StepReport(started, seconds, tokens), ends(*ended))


def adds_up(totals: EnergyTotals, meter: FakeMeter) -> bool:
    assert totals.metered is not None
    assert totals.requests is not None
    assert totals.idle is not None
    assert totals.metered == pytest.approx(meter.joules, rel=1e-12)
    return totals.requests + totals.idle == pytest.approx(totals.metered, rel=1e-12)


def test_a_request_alone_has_all_the_energy_of_its_steps() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    meter.wait(50)
    ledger.begin()
    for _ in range(9):
        step(ledger, meter, 0.3, {1: 1})
    step(ledger, meter, 0.3, {1: 1}, 1)
    energy = ledger.take("m", 1)
    assert energy.joules == pytest.approx(30.0)
    assert energy.gco2e == pytest.approx(30 / 3.6e6 * 100)
    assert "measured by a fake counter" in energy.boundary
    assert "idle time is not in it" in energy.boundary
    totals = ledger.totals()
    assert totals.requests == pytest.approx(30.0)
    assert totals.idle == pytest.approx(507.0)
    assert totals.gco2e == pytest.approx(537 / 3.6e6 * 100)


def test_requests_of_a_step_share_it_by_tokens() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    step(ledger, meter, 2.0, {1: 30, 2: 10}, 1, 2)
    assert ledger.take("m", 1).joules == pytest.approx(15.0)
    assert ledger.take("m", 2).joules == pytest.approx(5.0)


def test_time_between_steps_is_idle() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    step(ledger, meter, 1.0, {1: 1})
    meter.wait(3.0)
    step(ledger, meter, 1.0, {1: 1}, 1)
    assert ledger.take("m", 1).joules == pytest.approx(20.0)
    assert ledger.totals().idle == pytest.approx(37.0)


def test_requests_of_two_models_with_one_id_are_kept_apart() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    step(ledger, meter, 1.0, {1: 1}, model="a")
    step(ledger, meter, 3.0, {1: 1}, 1, model="b")
    step(ledger, meter, 1.0, {1: 1}, 1, model="a")
    assert ledger.take("a", 1).joules == pytest.approx(20.0)
    assert ledger.take("b", 1).joules == pytest.approx(30.0)


def test_steps_of_two_engines_at_the_same_time_are_not_counted_twice() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    started = meter.now
    meter.wait(0.9)
    ledger.observe_step("a", StepReport(started, 0.9, {1: 1}), [])
    ledger.observe_step("b", StepReport(started, 0.9, {1: 1}), [])
    meter.wait(0.1)
    ledger.observe_step("a", StepReport(meter.now), ends(1))
    ledger.observe_step("b", StepReport(meter.now), ends(1))
    assert ledger.take("a", 1).joules == ledger.take("b", 1).joules == pytest.approx(5.0)
    assert adds_up(ledger.totals(), meter)


def test_the_meter_is_read_at_an_interval() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    before = meter.readings
    for i in range(10_000):
        ledger.begin()
        step(ledger, meter, 0.001, {i: 1}, i)
    assert meter.readings - before <= 41  # four a second at most


def test_a_short_request_is_charged_at_the_power_of_the_last_interval() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    step(ledger, meter, 1.0, {1: 1}, 1)
    before = meter.readings
    step(ledger, meter, 0.1, {2: 1}, 2)
    assert meter.readings == before
    assert ledger.take("m", 2).joules == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_requests_and_idle_add_up_under_changing_power(seed: int) -> None:
    draw = random.Random(seed)
    meter = FakeMeter()
    ledger = ledger_of(meter)
    running: list[int] = []
    charged = last = 0.0
    for number in range(3000):
        if draw.random() < 0.3:
            ledger.begin()
            running.append(number)
        if draw.random() < 0.1:
            meter.wait(draw.expovariate(3), draw.uniform(0, 5))
        if running:
            ended = [r for r in running if draw.random() < 0.2]
            tokens = {r: draw.randint(1, 60) for r in running}
            step(ledger, meter, draw.expovariate(20), tokens, *ended, watts=draw.uniform(0, 50))
            running = [r for r in running if r not in ended]
            for r in ended:
                joules = ledger.take("m", r).joules
                assert joules is not None
                assert joules >= 0
                charged += joules
        if number % 50 == 0:
            totals = ledger.totals()
            assert totals.metered is not None
            assert totals.requests is not None
            assert totals.idle is not None
            assert totals.requests + totals.idle == pytest.approx(totals.metered, rel=1e-9)
            assert totals.metered >= last
            last = totals.metered
    step(ledger, meter, 0.5, dict.fromkeys(running, 1) or {-1: 1}, *(running or [-1]))
    charged += sum(ledger.take("m", r).joules or 0 for r in running or [-1])
    meter.wait(60)
    totals = ledger.stop()
    assert adds_up(totals, meter)
    assert totals.requests == pytest.approx(charged, rel=1e-9)


def test_without_a_meter_there_is_a_reason() -> None:
    meter = FakeMeter(watts=None)
    ledger = ledger_of(meter)
    step(ledger, meter, 1.0, {1: 1}, 1)
    energy = ledger.take("m", 1)
    assert (energy.joules, energy.gco2e) == (None, None)
    assert energy.boundary == "not measured: no counter"
    assert ledger.totals() == EnergyTotals(None, None, None, None)


def test_before_the_start_there_is_a_reason() -> None:
    meter = FakeMeter()
    ledger = EnergyLedger(meter)
    assert "not started" in ledger.take("m", 1).boundary

    def start() -> None:  # which takes a while
        assert "being started" in ledger.take("m", 2).boundary

    meter.start = start  # type: ignore[method-assign]
    ledger.start()
    assert "started" not in ledger.take("m", 3).boundary


def test_a_meter_that_fails_later_ends_the_figures() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    meter.watts = None
    step(ledger, meter, 1.0, {1: 1}, 1)
    assert ledger.take("m", 1).boundary == "not measured: no counter"


def test_without_a_grid_there_are_joules_alone() -> None:
    meter = FakeMeter(grid=None)
    ledger = ledger_of(meter)
    step(ledger, meter, 1.0, {1: 1}, 1)
    energy = ledger.take("m", 1)
    assert energy.joules == pytest.approx(10.0)
    assert energy.gco2e is None


def test_energy_that_is_never_taken_is_forgotten() -> None:
    meter = FakeMeter()
    ledger = ledger_of(meter)
    step(ledger, meter, 1.0, {0: 1}, 0)
    for i in range(1, MAX_UNTAKEN + 1):
        step(ledger, meter, 0.01, {i: 1}, i)
    assert ledger.take("m", 0).joules == 0
    assert ledger.take("m", MAX_UNTAKEN).joules == pytest.approx(0.1)
