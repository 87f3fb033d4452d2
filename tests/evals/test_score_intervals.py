"""Intervals of shares and means: published values, and how often they hold."""

import random

import pytest

from gemmule.evals.intervals import mean, paired, proportion, stratified


def test_wilson_as_published() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = proportion(successes, n)
        assert (found.low, found.high) == (
            pytest.approx(low, abs=5e-5),
            pytest.approx(high, abs=5e-5),
        )
    with pytest.raises(ValueError, match="3 of 2"):
        proportion(3, 2)


def test_one_task_of_zeros_and_ones_has_wilsons() -> None:
    found, wilson = mean([1.0] * 81 + [0.0] * 182), proportion(81, 263)
    assert found.low == pytest.approx(wilson.low)
    assert found.high == pytest.approx(wilson.high)


@pytest.mark.parametrize("equal", [True, False])
def test_no_right_answer_in_any_task_is_not_certainty(equal: bool) -> None:
    found = stratified([[0.0] * 2] * 27, equal=equal)
    assert found.value == found.low == 0
    assert found.high == pytest.approx(proportion(0, 54).high)


def test_fractions_have_standard_errors() -> None:
    found = mean([0.0, 0.5, 1.0, 0.5])
    assert found.value == 0.5
    assert found.high - found.value == pytest.approx(1.959964 * (0.5 / 3) ** 0.5 / 2)
    assert mean([0.25]).low == 0.25  # one value says nothing of spread
    with pytest.raises(ValueError, match="without values"):
        mean([])


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(
    ("shares", "most"), [((0.3, 0.35, 0.25, 0.3), 0.97), ((0.1, 0.5, 0.95, 0.3), 1.0)]
)
def test_about_95_of_100_hold_the_truth(
    shares: tuple[float, ...], most: float, equal: bool
) -> None:
    """Where tasks differ much it is more."""
    draw = random.Random(0)
    tasks = list(zip((30, 100, 20, 60), shares, strict=True))
    weights = [1 / 4 if equal else n / 210 for n, _ in tasks]
    truth = sum(w * p for w, (_, p) in zip(weights, tasks, strict=True))
    held = 0
    for _ in range(2000):
        groups = [[float(draw.random() < p) for _ in range(n)] for n, p in tasks]
        found = stratified(groups, equal=equal)
        held += found.low <= truth <= found.high
    assert 0.93 < held / 2000 <= most


def test_one_question_a_task_is_no_certainty_either() -> None:
    groups = [[float(i < 17)] for i in range(57)]
    for equal in (True, False):
        found = stratified(groups, equal=equal)
        assert (found.low, found.high) == pytest.approx(
            (proportion(17, 57).low, proportion(17, 57).high)
        )


def test_pairs_cancel_what_both_find_hard() -> None:
    a = [float(i % 3 == 0) for i in range(300)]
    b = [x if i % 50 else 1 - x for i, x in enumerate(a)]
    found = paired(a, b)
    assert found.value == pytest.approx(sum(x - y for x, y in zip(a, b, strict=True)) / 300)
    assert found.high - found.low < 2 * (mean(a).high - mean(a).low) / 3
