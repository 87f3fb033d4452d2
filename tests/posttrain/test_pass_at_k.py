"""pass@k against enumeration, and its intervals."""

import itertools
import random

import pytest

from gemmule.posttrain.pass_at_k import difference, estimate, pass_at_k


@pytest.mark.parametrize("n", [1, 4, 7])
def test_it_is_the_fraction_of_subsets_with_a_right_sample(n: int) -> None:
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        samples = [1] * correct + [0] * (n - correct)
        subsets = list(itertools.combinations(samples, k))
        expected = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k(n, correct, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_what_is_not_defined_is_refused(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, correct, k)


def test_it_is_unbiased_where_the_plug_in_estimate_is_not() -> None:
    rng, p, k = random.Random(0), 0.3, 4
    counts = [sum(rng.random() < p for _ in range(8)) for _ in range(20_000)]
    truth = 1 - (1 - p) ** k
    assert estimate(counts, 8, k).value == pytest.approx(truth, abs=0.005)
    plug_in = sum(1 - (1 - c / 8) ** k for c in counts) / len(counts)
    assert abs(plug_in - truth) > 0.02
    assert estimate(counts, 8, k).low < truth < estimate(counts, 8, k).high


def test_pass_at_1_is_the_mean_and_one_sample_gets_wilsons_interval() -> None:
    assert estimate([0, 2, 4], 4, 1).value == pytest.approx(0.5)
    nothing_right = estimate([0] * 50, 1, 1)
    assert nothing_right.value == 0
    assert nothing_right.high > 0.03  # 0 of 50 does not prove never


def test_paired_by_problem_the_difference_is_sharper() -> None:
    rng = random.Random(1)
    before = [rng.randint(0, 16) for _ in range(400)]
    after = [min(16, c + rng.choice([0, 1, 2])) for c in before]
    gain = difference(after, before, 16, 1)
    assert gain.low > 0
    assert gain.high - gain.low < 0.02 < estimate(before, 16, 1).high - estimate(before, 16, 1).low
    with pytest.raises(ValueError):
        difference([1, 2], [1], 16, 1)
