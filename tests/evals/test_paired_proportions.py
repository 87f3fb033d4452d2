"""Newcombe's interval of a difference over the same documents."""

import math

import pytest

from gemmule.evals.intervals import paired, paired_proportions


def counts(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return a, b


def test_as_published() -> None:
    """His example: 36 agree, 12 and 2 do not."""
    found = paired_proportions(*counts(36, 12, 2, 0))
    assert (found.value, found.n) == (pytest.approx(0.2), 50)
    assert (found.low, found.high) == (
        pytest.approx(0.0569, abs=5e-5),
        pytest.approx(0.3404, abs=5e-5),
    )


def test_it_is_not_empty_where_nothing_differs() -> None:
    found = paired_proportions(*counts(0, 0, 0, 1000))
    assert found.value == 0
    assert found.low == -found.high
    assert 0.003 < found.high < 0.006
    assert paired(*([float(v) for v in x] for x in counts(0, 0, 0, 1000))).high == 0


def test_swapped_it_is_mirrored_and_within_bounds() -> None:
    for case in ((5, 3, 9, 40), (0, 1, 0, 0), (1, 0, 0, 0), (0, 7, 0, 0), (100, 0, 1, 2)):
        a, b = counts(*case)
        there, back = paired_proportions(a, b), paired_proportions(b, a)
        assert math.isclose(there.value, -back.value)
        assert math.isclose(there.low, -back.high, abs_tol=1e-12)
        assert -1 <= there.low <= there.value <= there.high <= 1


def test_about_the_normal_interval_where_that_one_is_good() -> None:
    a, b = counts(3000, 900, 600, 2500)
    score, normal = paired_proportions(a, b), paired(list(map(float, a)), list(map(float, b)))
    assert math.isclose(score.low, normal.low, abs_tol=2e-3)
    assert math.isclose(score.high, normal.high, abs_tol=2e-3)


def test_pairs_are_needed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_proportions([True], [])
    with pytest.raises(ValueError, match="no share"):
        paired_proportions([], [])
