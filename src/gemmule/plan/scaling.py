"""The distillation scaling law, as a prior that measured runs correct.

Busbridge et al., "Distillation Scaling Laws" (arXiv 2502.08606), in nats per token:

    scratch    L(N, D)        = E + (A / N^alpha + B / D^beta)^gamma
    distilled  L(N, D, L_T)   = L_T + L_T^-c0 (1 + (L_T / (L(N, D) d1))^(1/f1))^(-c1 f1)
                                      (A' / N^alpha' + B' / D^beta')^gamma'

N is parameters without the embedding, D tokens, L_T the teacher's own loss. The paper fitted both
to models of 143M to 12.6B parameters on C4 with one tokenizer. Here the text, the tokenizer and
the size are others, so every coefficient has a wide prior around the paper's value, which measured
runs narrow (Bayes' rule, with an ensemble sampler).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Published value, and width of the prior: the standard deviation of the coefficient's logarithm.
# The widths are ours: a factor of about 3 for the amplitudes, 15% for the exponents. From c0 on
# the values are not confirmed by a second source (docs/plan.md).
COEFFICIENTS: dict[str, tuple[float, float]] = {
    "E": (1.220, 0.3),
    "A": (3355.0, 1.0),
    "B": (18186.0, 1.0),
    "alpha": (0.408, 0.15),
    "beta": (0.431, 0.15),
    "gamma": (0.452, 0.15),
    "c0": (2.549, 0.3),
    "c1": (522.61, 0.3),
    "d1": (1.315, 0.1),
    "f1": (0.090, 0.2),
    "A'": (2243.0, 1.0),
    "B'": (24181.0, 1.0),
    "alpha'": (0.321, 0.15),
    "beta'": (0.637, 0.15),
    "gamma'": (0.764, 0.15),
}
_CENTRE = np.log([value for value, _ in COEFFICIENTS.values()])
_WIDTH = np.array([width for _, width in COEFFICIENTS.values()])

RUN_ERROR = 0.05  # nats: deviation of a run from a correct law; seeds alone account for 0.02
WALKERS, ROUNDS, BURN_IN, THIN = 96, 2000, 1000, 25


@dataclass(frozen=True)
class LawPoint:
    """A run to predict, or a measured run.

    Attributes:
        parameters: parameters without the embedding.
        tokens: training tokens.
        teacher_loss: nats per token of the teacher on the same text, or one for each draw of the
            coefficients; None for training alone.
    """

    parameters: float
    tokens: float
    teacher_loss: float | Floats | None = None


@dataclass(frozen=True)
class Interval:
    """Median and central 90% of a distribution."""

    low: float
    median: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The numbers, rounded to four decimals."""
        return {k: round(float(getattr(self, k)), 4) for k in ("low", "median", "high")}


def published() -> Floats:
    """Logarithms of the paper's coefficients as a single sample, [1, coefficients]."""
    return _CENTRE[None].copy()


def loss(log_theta: Floats, point: LawPoint) -> Floats:
    """The law at `point`.

    Args:
        log_theta: logarithms of the coefficients in the order of COEFFICIENTS, [draws, 15].
        point: size and training tokens.

    Returns:
        Nats per token for each sample, [draws].
    """
    theta = np.exp(log_theta).T
    e, a, b, alpha, beta, gamma, c0, c1, d1, f1, a2, b2, alpha2, beta2, gamma2 = theta
    n, d = point.parameters, point.tokens
    scratch = e + (a / n**alpha + b / d**beta) ** gamma
    if point.teacher_loss is None:
        return np.asarray(scratch)
    teacher = point.teacher_loss
    # log(1 + ratio^(1/f1)), which would overflow for a teacher much worse than the student.
    gap = np.logaddexp(0.0, np.log(teacher / (scratch * d1)) / f1)
    reach = (a2 / n**alpha2 + b2 / d**beta2) ** gamma2
    return np.asarray(teacher + teacher**-c0 * np.exp(-c1 * f1 * gap) * reach)


def prior_draws(count: int, seed: int = 0) -> Floats:
    """Samples of the coefficients' logarithms from the prior, [count, 15]."""
    noise = np.random.default_rng(seed).standard_normal((count, len(_CENTRE)))
    return np.asarray(_CENTRE + _WIDTH * noise)


def posterior_draws(runs: Sequence[tuple[LawPoint, float]], seed: int = 0) -> Floats:
    """Samples of the coefficients given measured runs; without any, samples from the prior.

    An ensemble sampler (stretch moves, Goodman and Weare 2010): it needs no gradients and no
    tuning, and works with fifteen coefficients that a few runs correlate.

    Args:
        runs: measured runs with their losses in nats per token.
        seed: seed of the samples.
    """
    count = WALKERS * ((ROUNDS - BURN_IN) // THIN)
    if not runs:
        return prior_draws(count, seed)
    rng = np.random.default_rng(seed)
    walkers = prior_draws(WALKERS, seed)
    heights = _log_posterior(walkers, runs)
    half, kept = WALKERS // 2, []
    for step in range(ROUNDS):
        for moving in (slice(0, half), slice(half, None)):
            others = walkers[half:] if moving.start == 0 else walkers[:half]
            partners = others[rng.integers(0, half, half)]
            stretch = (1 + rng.random(half)) ** 2 / 2  # density 1 / sqrt(z) on [1/2, 2]
            proposed = partners + stretch[:, None] * (walkers[moving] - partners)
            risen = _log_posterior(proposed, runs)
            odds = (len(_CENTRE) - 1) * np.log(stretch) + risen - heights[moving]
            taken = np.log(rng.random(half)) < odds
            walkers[moving] = np.where(taken[:, None], proposed, walkers[moving])
            heights[moving] = np.where(taken, risen, heights[moving])
        if step >= BURN_IN and step % THIN == 0:
            kept.append(walkers.copy())
    return np.concatenate(kept)


def _log_posterior(log_theta: Floats, runs: Sequence[tuple[LawPoint, float]]) -> Floats:
    height = -0.5 * (((log_theta - _CENTRE) / _WIDTH) ** 2).sum(1)
    with np.errstate(all="ignore"):
        for point, measured in runs:
            off = (loss(log_theta, point) - measured) / RUN_ERROR
            height = height - 2.5 * np.log1p(off**2 / 4)  # Student's t: robust to an outlier
    return np.where(np.isfinite(height), height, -np.inf)


def predict(draws: Floats, point: LawPoint, vocab_size: int, seed: int = 0) -> Floats:
    """Losses of a run at `point`, one per sample, with RUN_ERROR added.

    No trained model is worse than the uniform distribution over the vocabulary. This bounds the law
    far below the sizes that it was fitted to.
    """
    noise = np.random.default_rng(seed).standard_normal(len(draws))
    law = np.minimum(loss(draws, point), np.log(vocab_size))
    return np.asarray(law + RUN_ERROR * noise)


def interval(values: Floats) -> Interval:
    """Median and central 90% of `values`."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return Interval(float(low), float(median), float(high))


@dataclass(frozen=True)
class Comparison:
    """Distillation against training from scratch.

    Attributes:
        scratch: loss from scratch.
        distilled: loss of the distilled model.
        gap: loss from scratch minus loss of the distilled model.
        probability: probability that the distilled loss is lower.
    """

    scratch: Interval
    distilled: Interval
    gap: Interval
    probability: float


def compare(draws: Floats, scratch: LawPoint, distilled: LawPoint, vocab_size: int) -> Comparison:
    """Compares the predictions sample by sample, so that shared uncertainty cancels in the gap."""
    a = predict(draws, scratch, vocab_size, seed=1)
    b = predict(draws, distilled, vocab_size, seed=2)
    return Comparison(interval(a), interval(b), interval(a - b), float((b < a).mean()))
