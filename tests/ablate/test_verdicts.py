"""What an ablation says of a difference between two arms."""

import pytest

from gemmule.ablate.results import verdict
from gemmule.stats import student_mean


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.30, 0.31, 0.32], "a ahead of b by 0.310 ± 0.025 nats/token (3 seeds)"),
        ([-0.30, -0.31, -0.32], "a behind b by 0.310 ± 0.025 nats/token (3 seeds)"),
        ([0.3, -0.2], "a against b: no difference seen (+0.050 ± 3.177 nats/token, 2 seeds)"),
        ([0.25], "a ahead of b by 0.250 nats/token (one seed: no interval)"),
        ([], "a against b: no seed has both"),
    ],
)
def test_verdicts(values: list[float], expected: str) -> None:
    assert verdict("a", "b", student_mean(values), "nats/token") == expected
