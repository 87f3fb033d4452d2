"""Intervals of proportions, means and differences: published values, and how often they hold."""

import math
import random

import pytest

from gemmule.stats import (
    mean,
    normal_mean,
    paired,
    paired_proportions,
    proportion,
    signed_difference,
    stratified,
    student_mean,
    t_quantile,
)

# Two-sided 95% points as statistical tables print them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}


def test_wilson_as_published() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        estimate = proportion(successes, n)
        assert (estimate.low, estimate.high) == (
            pytest.approx(low, abs=5e-5),
            pytest.approx(high, abs=5e-5),
        )
    with pytest.raises(ValueError, match="3 of 2"):
        proportion(3, 2)


def test_one_task_of_zeros_and_ones_has_wilsons() -> None:
    estimate, wilson = mean([1.0] * 81 + [0.0] * 182), proportion(81, 263)
    assert estimate.low == pytest.approx(wilson.low)
    assert estimate.high == pytest.approx(wilson.high)


@pytest.mark.parametrize("equal", [True, False])
def test_no_right_answer_in_any_task_is_not_certainty(equal: bool) -> None:
    estimate = stratified([[0.0] * 2] * 27, equal=equal)
    assert estimate.value == estimate.low == 0
    assert estimate.high == pytest.approx(proportion(0, 54).high)


def test_fractions_have_standard_errors() -> None:
    estimate = mean([0.0, 0.5, 1.0, 0.5])
    assert estimate.value == 0.5
    assert estimate.high - estimate.value == pytest.approx(1.959964 * (0.5 / 3) ** 0.5 / 2)
    assert mean([0.25]).low == 0.25  # one value has no spread
    assert normal_mean([0.0, 0.5, 1.0, 0.5], 2.0).low == pytest.approx(0.5 - (0.5 / 3) ** 0.5)
    with pytest.raises(ValueError, match="without values"):
        mean([])


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(
    ("rates", "most"), [((0.3, 0.35, 0.25, 0.3), 0.97), ((0.1, 0.5, 0.95, 0.3), 1.0)]
)
def test_about_95_of_100_hold_the_truth(rates: tuple[float, ...], most: float, equal: bool) -> None:
    """Where tasks differ much it is more."""
    draw = random.Random(0)
    tasks = list(zip((30, 100, 20, 60), rates, strict=True))
    weights = [1 / 4 if equal else n / 210 for n, _ in tasks]
    truth = sum(w * p for w, (_, p) in zip(weights, tasks, strict=True))
    held = 0
    for _ in range(2000):
        groups = [[float(draw.random() < p) for _ in range(n)] for n, p in tasks]
        estimate = stratified(groups, equal=equal)
        held += estimate.low <= truth <= estimate.high
    assert 0.93 < held / 2000 <= most


def test_one_question_a_task_is_no_certainty_either() -> None:
    groups = [[float(i < 17)] for i in range(57)]
    for equal in (True, False):
        estimate = stratified(groups, equal=equal)
        assert (estimate.low, estimate.high) == pytest.approx(
            (proportion(17, 57).low, proportion(17, 57).high)
        )


def test_pairs_cancel_what_both_find_hard() -> None:
    a = [float(i % 3 == 0) for i in range(300)]
    b = [x if i % 50 else 1 - x for i, x in enumerate(a)]
    estimate = paired(a, b)
    assert estimate.value == pytest.approx(sum(x - y for x, y in zip(a, b, strict=True)) / 300)
    assert estimate.high - estimate.low < 2 * (mean(a).high - mean(a).low) / 3


# Newcombe's interval of a difference over the same documents.


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return a, b


def test_as_published() -> None:
    """His example: 36 agree, 12 and 2 do not."""
    estimate = paired_proportions(*outcomes(36, 12, 2, 0))
    assert (estimate.value, estimate.n) == (pytest.approx(0.2), 50)
    assert (estimate.low, estimate.high) == (
        pytest.approx(0.0569, abs=5e-5),
        pytest.approx(0.3404, abs=5e-5),
    )


def test_it_is_not_empty_where_nothing_differs() -> None:
    estimate = paired_proportions(*outcomes(0, 0, 0, 1000))
    assert estimate.value == 0
    assert estimate.low == -estimate.high
    assert 0.003 < estimate.high < 0.006
    assert paired(*([float(v) for v in x] for x in outcomes(0, 0, 0, 1000))).high == 0


def test_swapped_it_is_mirrored_and_within_bounds() -> None:
    for case in ((5, 3, 9, 40), (0, 1, 0, 0), (1, 0, 0, 0), (0, 7, 0, 0), (100, 0, 1, 2)):
        a, b = outcomes(*case)
        there, back = paired_proportions(a, b), paired_proportions(b, a)
        assert math.isclose(there.value, -back.value)
        assert math.isclose(there.low, -back.high, abs_tol=1e-12)
        assert -1 <= there.low <= there.value <= there.high <= 1


def test_about_the_normal_interval_where_that_one_is_good() -> None:
    a, b = outcomes(3000, 900, 600, 2500)
    score, normal = paired_proportions(a, b), paired(list(map(float, a)), list(map(float, b)))
    assert math.isclose(score.low, normal.low, abs_tol=2e-3)
    assert math.isclose(score.high, normal.high, abs_tol=2e-3)


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_proportions([True], [])
    with pytest.raises(ValueError, match="not a proportion"):
        paired_proportions([], [])


# Student's t.


@pytest.mark.parametrize(("degrees", "expected"), TABLE.items())
def test_t_as_in_printed_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=6e-4)


def test_t_of_other_confidences() -> None:
    assert t_quantile(1, 0.5) == pytest.approx(1.0)  # tan(pi / 4)
    assert t_quantile(2, 0.9) == pytest.approx(2.920, abs=6e-4)
    assert t_quantile(1000) == pytest.approx(1.96234, abs=1e-5)


def test_student_mean_of_three_values() -> None:
    """1, 2 and 6: mean 3, variance (4 + 1 + 9) / 2 = 7."""
    result = student_mean([1.0, 2.0, 6.0])
    assert (result["mean"], result["n"]) == (3.0, 3)
    assert result["half_width"] == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert student_mean([2.5]) == {"mean": 2.5, "half_width": None, "n": 1}
    assert student_mean([]) == {"mean": None, "half_width": None, "n": 0}


def test_a_signed_difference_is_bounded_and_never_empty() -> None:
    """Agresti and Min: half a document more on either side."""
    estimate = signed_difference(30, 10, 100)
    assert estimate.value == 0.2
    spread = math.sqrt((41 / 102 - (20 / 102) ** 2) / 102)
    assert (estimate.low, estimate.high) == (
        pytest.approx(20 / 102 - 1.959964 * spread),
        pytest.approx(20 / 102 + 1.959964 * spread),
    )
    none = signed_difference(0, 0, 50)
    assert none.low == -none.high < 0
    assert signed_difference(9, 0, 9).high == 1.0
