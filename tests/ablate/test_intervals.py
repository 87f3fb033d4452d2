"""Means and intervals, against values worked out by hand and printed tables."""

import math

import pytest

from gemmule.ablate.intervals import summary, t_quantile, verdict

# Two-sided 95% points as statistical tables print them.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}


@pytest.mark.parametrize(("degrees", "expected"), TABLE.items())
def test_t_as_in_printed_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=6e-4)


def test_t_of_other_confidences() -> None:
    assert t_quantile(1, 0.5) == pytest.approx(1.0)  # tan(pi / 4)
    assert t_quantile(2, 0.9) == pytest.approx(2.920, abs=6e-4)
    assert t_quantile(1000) == pytest.approx(1.96234, abs=1e-5)


def test_summary_of_three_values() -> None:
    """1, 2 and 6: mean 3, variance (4 + 1 + 9) / 2 = 7."""
    found = summary([1.0, 2.0, 6.0])
    assert (found["mean"], found["n"]) == (3.0, 3)
    assert found["half_width"] == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert summary([2.5]) == {"mean": 2.5, "half_width": None, "n": 1}
    assert summary([]) == {"mean": None, "half_width": None, "n": 0}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.30, 0.31, 0.32], "a ahead of b by 0.310 ± 0.025 nats/token (3 seeds)"),
        ([-0.30, -0.31, -0.32], "a behind b by 0.310 ± 0.025 nats/token (3 seeds)"),
        ([0.3, -0.2], "a against b: no difference seen (+0.050 ± 3.177 nats/token, 2 seeds)"),
        ([0.25], "a ahead of b by 0.250 nats/token (one seed: no interval)"),
        ([], "a against b: no seed has both"),
    ],
)
def test_verdicts(values: list[float], said: str) -> None:
    assert verdict("a", "b", summary(values), "nats/token") == said
