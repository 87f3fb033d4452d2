"""Mixtures: shares at every prefix, epochs, limits and stages, all in closed form."""

import math
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from gemmule.data.mixture.cycle import LONGEST, cycle_of
from gemmule.data.mixture.schedule import Schedule
from gemmule.data.mixture.settings import MixtureSource, MixtureStage, check
from gemmule.errors import ConfigError

some = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
WEIGHTS = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(any)


def source(name: str, weight: float = 1.0, max_epochs: float | None = None) -> MixtureSource:
    return MixtureSource(path=Path(name), weight=weight, max_epochs=max_epochs)


def sources(weights, limits=None):
    limits = limits or [None] * len(weights)
    return [source(f"s{n}", w, m) for n, (w, m) in enumerate(zip(weights, limits, strict=True))]


def everything(schedule):
    """(source, count) of every row."""
    found = schedule.at(np.arange(schedule.rows))
    return list(zip(*(part.tolist() for part in found), strict=True))


@some
@given(WEIGHTS)
def test_at_every_prefix_each_source_has_its_share_within_one(weights):
    cycle = cycle_of(weights)
    shares = np.array(weights) / sum(weights)
    slots, counts = cycle.at(np.arange(3 * len(cycle)))
    read = np.zeros(len(weights), np.int64)
    for n, (which, count) in enumerate(zip(slots, counts, strict=True)):
        assert (np.abs(read - n * shares) < 1).all()
        assert cycle.before(n).tolist() == read.tolist()
        assert count == read[which]
        read[which] += 1
        assert cycle.end_of(which, int(read[which])) == n + 1


def test_weights_are_what_is_written_not_what_a_float_holds():
    assert cycle_of([0.1, 0.2, 0.7]).counts.tolist() == [1, 2, 7]
    assert cycle_of([0, 0.5, 1.5]).counts.tolist() == [0, 1, 3]
    assert cycle_of([80, 20]).counts.tolist() == [4, 1]
    assert len(cycle_of([0.33333, 0.66667])) == LONGEST
    with pytest.raises(ConfigError, match="repeat only after 1,000,000 windows"):
        cycle_of([0.333333, 0.666667])


@some
@given(WEIGHTS, st.data())
def test_every_window_is_read_once_an_epoch_and_no_limit_is_exceeded(weights, data):
    windows = [data.draw(st.integers(1, 15)) for _ in weights]
    limits = [data.draw(st.sampled_from([None, 1, 1.5, 3])) for _ in weights]
    batch = data.draw(st.integers(1, 7))
    steps = data.draw(st.integers(1, 12))
    allowed = [
        math.inf if m is None else int(m * n) for m, n in zip(limits, windows, strict=True)
    ]  # fmt: skip
    total = sum(a for a, w in zip(allowed, weights, strict=True) if w)
    if total < steps * batch:
        with pytest.raises(ConfigError, match="nothing left to read after row"):
            Schedule(sources(weights, limits), (), windows, steps, batch)
        return
    schedule = Schedule(sources(weights, limits), (), windows, steps, batch)
    rows = everything(schedule)
    for number in range(len(weights)):
        mine = [count for which, count in rows if which == number]
        assert mine == list(range(len(mine)))  # no gap, no repetition: epochs follow one another
        assert len(mine) <= allowed[number]
    for n in range(schedule.rows + 1):
        counted = Counter(which for which, _ in rows[:n])
        assert schedule.before(n).tolist() == [counted[k] for k in range(len(weights))]
    for exhausted in schedule.exhausted:
        assert schedule.before(exhausted.row)[exhausted.source] == allowed[exhausted.source]
        assert schedule.before(exhausted.row - 1)[exhausted.source] < allowed[exhausted.source]


def test_the_weight_of_an_exhausted_source_goes_to_the_others_by_their_weights():
    mixed = [source("web", 6), source("code", 3), source("good", 1, max_epochs=2)]
    schedule = Schedule(mixed, (), [1000, 1000, 10], steps=100, batch_size=6)
    (exhausted,) = schedule.exhausted
    assert exhausted.source == 2
    assert schedule.before(exhausted.row)[2] == 20
    assert 190 < exhausted.row <= 200
    rest = schedule.before(600) - schedule.before(exhausted.row)
    assert rest[2] == 0
    assert abs(rest[0] - 2 * rest[1]) <= 2
    assert schedule.epochs(600)[2] == 2


@some
@given(st.integers(20, 300), st.integers(1, 9), st.sampled_from([0.05, 0.1, 0.3, 0.5]))
def test_stages_begin_at_their_exact_step(steps, batch, share):
    mixed = [source("web", 9), source("good", 1)]
    stages = [MixtureStage(share=share, weights={"web": 0})]
    schedule = Schedule(mixed, stages, [50, 50], steps, batch)
    which = [number for number, _ in everything(schedule)]
    assert schedule.starts[-1] % batch == 0
    assert abs(schedule.starts[-1] // batch - steps * (1 - share)) <= 0.5 + 1e-9
    assert set(which[schedule.starts[-1] :]) == {1}
    before = which[: schedule.starts[-1]]
    assert abs(before.count(1) - len(before) / 10) < 1


def test_several_stages_and_a_source_that_only_one_reads():
    mixed = [source("web", 1), source("good", 0)]
    stages = [
        MixtureStage(share=0.2, weights={"good": 1}),
        MixtureStage(share=0.1, weights={"web": 0, "good": 1}),
    ]
    schedule = Schedule(mixed, stages, [40, 40], steps=100, batch_size=2)
    assert schedule.starts == [0, 140, 180]
    assert schedule.before(140).tolist() == [140, 0]
    assert schedule.before(180).tolist() == [160, 20]
    assert schedule.before(200).tolist() == [160, 40]


@pytest.mark.parametrize(
    ("weights", "stages", "message"),
    [
        ([0, 0], [], "every source of the mixture has weight 0"),
        ([1, 1], [(0.1, {"s0": 0, "s1": 0})], "every source has weight 0 in a stage"),
        ([1, 1], [(0.1, {"s3": 1})], "a stage has a weight for 's3'; did you mean"),
        ([1, 1], [(0.6, {}), (0.5, {})], "add up to 1.1: use at most 1"),
    ],
)
def test_settings_that_contradict_each_other(weights, stages, message):
    with pytest.raises(ValueError, match=message):
        check(sources(weights), [MixtureStage(share=s, weights=w) for s, w in stages])


def test_a_stage_without_a_step():
    stages = [MixtureStage(share=0.1, weights={}), MixtureStage(share=0.04, weights={})]
    with pytest.raises(ConfigError, match=r"share 0.04 of 10 steps"):
        Schedule(sources([1]), stages, [5], steps=10, batch_size=4)


def test_a_limit_below_one_window():
    with pytest.raises(ConfigError, match=r"max_epochs 0.01 of s0 allows none of its 10 windows"):
        Schedule(sources([1], [0.01]), (), [10], 1, 1)


def test_names_must_differ():
    with pytest.raises(ValueError, match="two sources of the mixture are called 'web'"):
        check([source("a/web"), source("b/web")], [])
