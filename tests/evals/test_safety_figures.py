"""Intervals of safety figures, and how much worse one model is than another."""

import math
import random

import pytest

from gemmule.evals.safety.metric import SafetyMetric, Values, estimate, worse_by
from gemmule.stats import paired


def numbered(values: list[float | None]) -> Values:
    return {str(i): v for i, v in enumerate(values)}


def metric(better: str) -> SafetyMetric:
    return SafetyMetric("x", "x", numbered, better)  # type: ignore[arg-type]


def test_percent_and_wilson() -> None:
    result = estimate(metric("higher"), numbered([1, 1, 0, 0, None]))
    assert result is not None
    assert (result.value, result.n) == (50.0, 4)
    assert result.low == pytest.approx(15.0, abs=0.1)  # Wilson's for 2 of 4
    assert result.high == pytest.approx(85.0, abs=0.1)


def test_nothing_counts() -> None:
    assert estimate(metric("zero"), numbered([None, None])) is None
    assert estimate(metric("zero"), {}) is None


@pytest.mark.parametrize(
    ("values", "value"), [([1, 1, 1], 100.0), ([-1, -1], -100.0), ([0, 0, 0], 0.0), ([1, -1], 0.0)]
)
def test_bias_is_never_certain(values: list[float | None], value: float) -> None:
    result = estimate(metric("zero"), numbered(values))
    assert result is not None
    assert result.value == pytest.approx(value)
    assert result.high - result.low > 20
    assert -100 <= result.low <= result.value <= result.high <= 100


def test_intervals_cover() -> None:
    """About 95 of 100 intervals hold the truth, for each kind of value."""
    pick = random.Random(1)
    kinds = {
        "bias": ([1.0, -1.0, 0.0], [0.3, 0.2, 0.5], 10.0),
        "two-sided": ([1.0, -1.0], [0.6, 0.4], 20.0),
        "mean": ([0.1, 0.5, 0.9], [0.2, 0.5, 0.3], 54.0),
    }
    for kind, (values, weights, truth) in kinds.items():
        inside = 0
        for _ in range(400):
            better = "lower" if kind == "mean" else "zero"
            drawn: list[float | None] = [*pick.choices(values, weights, k=120)]
            result = estimate(metric(better), numbered(drawn))
            assert result is not None
            inside += result.low <= truth <= result.high
        assert 0.91 <= inside / 400 <= 0.985


def test_worse_is_the_paired_difference_where_everything_counts() -> None:
    pick = random.Random(2)
    ours = [pick.random() for _ in range(50)]
    theirs = [pick.random() / 2 for _ in range(50)]
    result = worse_by(metric("lower"), numbered(ours), numbered(theirs))  # type: ignore[arg-type]
    expected = paired(ours, theirs)
    assert result.value == pytest.approx(100 * expected.value)
    assert result.low == pytest.approx(100 * expected.low)
    other = worse_by(metric("higher"), numbered(ours), numbered(theirs))  # type: ignore[arg-type]
    assert other.value == pytest.approx(-result.value)
    assert (other.low, other.high) == pytest.approx((-result.high, -result.low))


def test_yes_and_no_are_paired_and_never_certain() -> None:
    pick = random.Random(2)
    ours = [float(pick.random() < 0.6) for _ in range(300)]
    theirs = [float(pick.random() < 0.5) for _ in range(300)]
    result = worse_by(metric("lower"), numbered(ours), numbered(theirs))  # type: ignore[arg-type]
    expected = paired(ours, theirs)
    assert result.value == pytest.approx(100 * expected.value)
    assert result.low == pytest.approx(100 * expected.low, abs=0.1)
    same = worse_by(metric("lower"), numbered([1.0] * 5), numbered([1.0] * 5))  # type: ignore[arg-type]
    assert same.low < -20
    assert same.high > 20


def test_only_documents_in_common_count() -> None:
    result = worse_by(metric("lower"), {"a": 1.0, "b": 0.0}, {"b": 0.0, "c": 1.0})
    assert (result.value, result.n) == (0.0, 1)
    with pytest.raises(ValueError, match="no documents in common"):
        worse_by(metric("lower"), {"a": 1.0}, {"b": 1.0})


def test_a_bias_is_worse_the_further_from_zero() -> None:
    against, none, strong = [-1.0] * 8 + [1.0] * 2, [1.0, -1.0] * 5, [1.0] * 9 + [-1.0]
    bias = metric("zero")
    values = [numbered(v) for v in (against, none, strong)]  # type: ignore[arg-type]
    assert worse_by(bias, values[0], values[1]).value == pytest.approx(60.0)
    assert worse_by(bias, values[2], values[0]).value == pytest.approx(20.0)
    assert worse_by(bias, values[1], values[2]).value == pytest.approx(-80.0)
    half = metric("half")
    assert worse_by(half, numbered([0.0, 0.0]), numbered([1.0, 0.0])).value == pytest.approx(50.0)


def test_where_not_all_count_the_interval_covers() -> None:
    """The mean over those that count, of two models that differ in which those are."""
    pick = random.Random(3)
    inside = 0
    for _ in range(400):
        ours, theirs = [], []
        for _ in range(150):
            shared = pick.random()
            for values, share in ((ours, 0.6), (theirs, 0.5)):
                counts = pick.random() < 0.7
                values.append((1.0 if shared < share else -1.0) if counts else None)
        result = worse_by(metric("lower"), numbered(ours), numbered(theirs))
        inside += result.low <= 20.0 <= result.high  # (2 x 0.6 - 1) - (2 x 0.5 - 1)
    assert 0.91 <= inside / 400 <= 0.985
    assert math.isfinite(result.value)
