"""The rules of a promotion gate, applied to what was measured of a candidate and its parent.

Both answer the same prompts, so differences are paired by prompt: difficulty that both share
cancels. A gain must be certain and a harm excluded: the whole 95% interval of the reward's gain
lies above `reward_gain`, and those of rises in loss, divergence and length below their limits. So
too few prompts refuse a candidate, they never let one pass.

Free of torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from gemmule import stats
from gemmule.config import Config
from gemmule.runs.schema_evals import Interval, PromotionCheck
from gemmule.stats import Estimate


class GateLimits(Config):
    """What a candidate must reach.

    Attributes:
        reward_gain: least gain in mean reward per answer; the whole interval is above it.
        base_loss_rise: largest rise of the held-out loss on base text, nats per token.
        kl: largest divergence from the parent on the candidate's answers, nats per token.
        length_ratio: largest mean length of answers, as a multiple of the parent's.
        stop_rate: least fraction of answers that end by themselves.
    """

    reward_gain: float = Field(default=0.0, allow_inf_nan=False)
    base_loss_rise: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    kl: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    length_ratio: float = Field(default=1.5, ge=1, allow_inf_nan=False)
    stop_rate: float = Field(default=0.99, ge=0, le=1)


@dataclass(frozen=True)
class Answers:
    """What was measured of a model's answers to the prompts.

    Attributes:
        rewards: rewards of the answers to each prompt; None: no reward was given.
        lengths: numbers of tokens of the answers to each prompt.
        finished: whether each answer ended by itself, by prompt.
    """

    rewards: Sequence[Sequence[float]] | None
    lengths: Sequence[Sequence[int]]
    finished: Sequence[Sequence[bool]]


def reward_check(candidate: Answers, parent: Answers, least: float) -> PromotionCheck:
    """Whether the reward rose."""
    assert candidate.rewards is not None and parent.rewards is not None
    ours, theirs = _means(candidate.rewards), _means(parent.rewards)
    gain = _paired(ours, theirs)
    return PromotionCheck(
        name="reward",
        rule=f"gains more than {least:g} (whole interval)",
        passed=gain.low > least,
        outcome=f"gains {shown(gain)}",
        estimate=interval(gain),
        candidate=_mean(ours),
        parent=_mean(theirs),
    )


def base_loss_check(
    candidate: Sequence[float], parent: Sequence[float], most: float
) -> PromotionCheck:
    """Whether the loss on base text stayed.

    Args:
        candidate: nats per token of each window of text.
        parent: the same of the parent.
        most: largest rise.
    """
    rise = stats.paired(candidate, parent)
    return PromotionCheck(
        name="base loss",
        rule=f"rises by at most {most:g} nats per token (whole interval)",
        passed=rise.high <= most,
        outcome=f"changes by {shown(rise)}",
        estimate=interval(rise),
        candidate=_mean(candidate),
        parent=_mean(parent),
    )


def kl_check(nats: Sequence[float], tokens: Sequence[int], most: float) -> PromotionCheck:
    """Whether the candidate stayed near its parent.

    Args:
        nats: divergence summed over the tokens of each prompt's answers.
        tokens: number of those tokens.
        most: largest divergence, nats per token.
    """
    kl = ratio(nats, tokens)
    return PromotionCheck(
        name="KL",
        rule=f"is at most {most:g} nats per token (whole interval)",
        passed=kl.high <= most,
        outcome=f"is {shown(kl)}",
        estimate=interval(kl),
    )


def length_check(candidate: Answers, parent: Answers, most: float) -> PromotionCheck:
    """Whether answers grew."""
    ours, theirs = _means(candidate.lengths), _means(parent.lengths)
    growth, before = stats.paired(ours, theirs), _mean(theirs)
    return PromotionCheck(
        name="length",
        rule=f"is at most {most:g} times the parent's {before:.1f} tokens (whole interval)",
        passed=growth.high <= (most - 1) * before,
        outcome=f"changes by {shown(growth)} tokens",
        estimate=interval(growth),
        candidate=_mean(ours),
        parent=before,
    )


def stop_check(candidate: Answers, parent: Answers, least: float) -> PromotionCheck:
    """Whether answers end by themselves."""
    ours, theirs = (
        [done for answers in model.finished for done in answers] for model in (candidate, parent)
    )
    rate = stats.proportion(sum(ours), len(ours))
    return PromotionCheck(
        name="stop rate",
        rule=f"at least {least:.4g} of the answers end by themselves",
        passed=rate.value >= least,
        outcome=f"{shown(rate)} do",
        estimate=interval(rate),
        candidate=rate.value,
        parent=sum(theirs) / len(theirs),
    )


def interval(estimate: Estimate) -> Interval:
    """An estimate as result files keep it."""
    return Interval.model_validate(estimate.json())


def shown(estimate: Estimate) -> str:
    """A value with its interval: 0.031 (0.012 to 0.050)."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def ratio(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """A ratio of two sums over prompts, with the normal interval of its linearization.

    The variance is that of sum_i - ratio count_i over the mean count (Cochran, Sampling Techniques,
    section 6.4), so that prompts with long answers weigh as much as their tokens.

    Raises:
        ValueError: if there are no prompts, or nothing is counted.
    """
    total, n = math.fsum(counts), len(sums)
    value = math.fsum(sums) / total
    residuals = [s - value * c for s, c in zip(sums, counts, strict=True)]
    half = (stats.normal_mean(residuals).high - math.fsum(residuals) / n) * n / total
    return Estimate(value, value - half, value + half, n)


def _paired(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """The mean of a - b; of zeros and ones with an interval that always has a width."""
    if {*a, *b} <= {0.0, 1.0}:
        return stats.paired_proportions([x == 1 for x in a], [x == 1 for x in b])
    return stats.paired(a, b)


def _means(groups: Sequence[Sequence[float]]) -> list[float]:
    return [_mean(group) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
