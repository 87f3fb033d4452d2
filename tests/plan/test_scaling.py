"""The law against figures worked out by hand, and what measured runs do to it."""

import math

import numpy as np
import pytest

from gemmule.plan import scaling
from gemmule.plan.scaling import LawPoint

SMALL, TEACHER = 1.0e6, 3.6
RUNS = [
    (LawPoint(SMALL, 4.3e5), 4.11),
    (LawPoint(SMALL, 8.2e5), 3.74),
    (LawPoint(SMALL, 4.3e5, TEACHER), 3.82),
]


def test_the_law_at_the_published_coefficients() -> None:
    # 10^(9 x 0.408) = 4698.9 and 10^(11 x 0.431) = 55,081 divide A and B.
    n, d = 3355 / 4698.94, 18186 / 55080.77
    by_hand = 1.220 + (n + d) ** 0.452
    assert by_hand == pytest.approx(2.2397, abs=1e-4)
    losses = scaling.loss(scaling.published(), LawPoint(1e9, 1e11))
    assert losses == pytest.approx([by_hand], rel=1e-5)


def test_the_distilled_law_at_the_published_coefficients() -> None:
    student, teacher = 2.239724, 2.2
    gap = 1 + (teacher / (student * 1.315)) ** (1 / 0.090)
    # 10^(9 x 0.321) = 773.82 and 10^(11 x 0.637) = 1.01625e7 divide A' and B'.
    reach = (2243 / 773.82 + 24181 / 1.016249e7) ** 0.764
    by_hand = teacher + teacher**-2.549 * gap ** (-522.61 * 0.090) * reach
    losses = scaling.loss(scaling.published(), LawPoint(1e9, 1e11, teacher))
    assert losses == pytest.approx([by_hand], rel=1e-4)


def test_more_of_everything_helps_and_a_bad_teacher_does_not_overflow() -> None:
    theta = scaling.published()
    assert scaling.loss(theta, LawPoint(1e8, 1e10)) > scaling.loss(theta, LawPoint(2e8, 1e10))
    assert scaling.loss(theta, LawPoint(1e8, 1e10)) > scaling.loss(theta, LawPoint(1e8, 2e10))
    limit = scaling.loss(theta, LawPoint(1e9, 1e20, 2.0)) - 2.0
    assert limit < scaling.loss(theta, LawPoint(1e9, 1e9, 2.0)) - 2.0
    assert scaling.loss(theta, LawPoint(1e9, 1e9, 500.0)) == pytest.approx([500.0])


def test_without_runs_the_prior_surrounds_the_published_values() -> None:
    draws = scaling.posterior_draws([])
    centre = np.exp(np.median(draws, axis=0))
    values = [value for value, _ in scaling.COEFFICIENTS.values()]
    assert centre == pytest.approx(values, rel=0.1)
    wide = scaling.interval(scaling.predict(draws, LawPoint(SMALL, 4.3e5), 4096))
    assert wide.high - wide.low > 1


def test_runs_move_the_law_to_themselves_and_narrow_it() -> None:
    before, after = scaling.posterior_draws([]), scaling.posterior_draws(RUNS)
    for point, measured in RUNS:
        prior = scaling.interval(scaling.predict(before, point, 4096))
        predicted = scaling.interval(scaling.predict(after, point, 4096))
        assert predicted.median == pytest.approx(measured, abs=0.1)
        assert predicted.low < measured < predicted.high
        assert predicted.high - predicted.low < (prior.high - prior.low) / 3


def test_another_run_narrows_its_neighbourhood_only() -> None:
    draws = scaling.posterior_draws(RUNS)

    def width(tokens: float) -> float:
        interval = scaling.interval(scaling.predict(draws, LawPoint(SMALL, tokens), 4096))
        return interval.high - interval.low

    assert width(8.2e7) > 1.5 * width(8.2e5)


def test_the_same_runs_give_the_same_draws() -> None:
    assert np.array_equal(scaling.posterior_draws(RUNS[:1]), scaling.posterior_draws(RUNS[:1]))


def test_probability_follows_the_runs() -> None:
    good = [*RUNS[:2], (LawPoint(SMALL, 4.3e5, TEACHER), 3.2)]
    bad = [*RUNS[:2], (LawPoint(SMALL, 4.3e5, TEACHER), 4.6)]
    scratch, distilled = LawPoint(SMALL, 8.2e5), LawPoint(SMALL, 4.3e5, TEACHER)
    wins = scaling.compare(scaling.posterior_draws(good), scratch, distilled, 4096)
    loses = scaling.compare(scaling.posterior_draws(bad), scratch, distilled, 4096)
    assert wins.probability > 0.8
    assert loses.probability < 0.1
    assert wins.gap.median > 0 > loses.gap.median


def test_nothing_trained_is_worse_than_uniform() -> None:
    draws = scaling.prior_draws(500)
    assert scaling.loss(draws, LawPoint(100, 100)).max() > math.log(512)
    noisy = scaling.predict(draws, LawPoint(100, 100), 512)
    assert noisy.max() < math.log(512) + 5 * scaling.RUN_ERROR
