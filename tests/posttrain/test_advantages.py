"""Advantages in closed form; groups without spread teach nothing."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gemmule.errors import ConfigError
from gemmule.posttrain.advantages import (
    all_equal,
    centered,
    jbond_returns,
    leave_one_out,
    standardized,
)

ESTIMATORS = (leave_one_out, centered, standardized)
REWARDS = torch.tensor([[1.0, 0.0, 0.0, 2.0], [3.0, 1.0, 1.0, 1.0]], dtype=torch.float64)


def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others() -> None:
    expected = [[r - (sum(row) - r) / (len(row) - 1) for r in row] for row in REWARDS.tolist()]
    assert torch.allclose(leave_one_out(REWARDS), torch.tensor(expected, dtype=torch.float64))


def test_the_others_in_closed_form() -> None:
    assert torch.allclose(centered(REWARDS), leave_one_out(REWARDS) * 3 / 4)
    deviation = torch.tensor([[math.sqrt(11 / 12)], [1.0]], dtype=torch.float64)
    assert torch.allclose(standardized(REWARDS), centered(REWARDS) / (deviation + 1e-4))


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.3, 1e6])
def test_groups_without_spread_are_exactly_zero(
    estimate: Callable[[Tensor], Tensor], value: float
) -> None:
    """Their standard deviation is rounding, and a division by it would be a spike."""
    rewards = torch.full((2, 3), value, dtype=torch.float64)
    rewards[1] += torch.tensor([0.0, 1e-9, -1e-9])
    assert all_equal(rewards).all()
    assert (estimate(rewards) == 0).all()
    assert not all_equal(REWARDS).any()


@pytest.mark.parametrize("estimate", ESTIMATORS)
def test_one_answer_alone_has_no_advantage(estimate: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ConfigError, match="at least two answers"):
        estimate(torch.ones(3, 1))


def test_the_advantage_of_an_answer_does_not_depend_on_other_groups() -> None:
    for estimate in ESTIMATORS:
        assert torch.equal(estimate(REWARDS)[:1], estimate(REWARDS[:1]))


def test_jbond_punishes_answers_that_lose_to_both_of_the_anchors() -> None:
    own = torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    theirs = torch.tensor([[1.0, 2.0]] * 3 + [[1.0, 0.5]], dtype=torch.float64)
    ratio = torch.tensor([0.5, 0.0, -1.0, 2.0], dtype=torch.float64)
    returns = jbond_returns(own, theirs, ratio)
    assert returns.tolist() == pytest.approx([-math.log(16) - 0.5, 0.0, 1.0, -2.0])


def test_the_log_ratio_in_the_reward_has_the_gradient_of_the_divergence() -> None:
    """Over all pairs of answers, of five; as a loss the log ratio would have none at all."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.0, 1.5], dtype=torch.float64, requires_grad=True)
    anchor = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64).log()
    rewards, beta = torch.tensor([1.0, 0.0, 0.5, 2.0, -1.0], dtype=torch.float64), 0.4
    log_p = logits.log_softmax(-1)
    objective = (log_p.exp() * (rewards - beta * (log_p - anchor))).sum()
    (exact,) = torch.autograd.grad(objective, logits, retain_graph=True)
    penalized = (rewards - beta * (log_p - anchor)).detach()
    estimate = torch.zeros(())
    for pair in torch.cartesian_prod(torch.arange(5), torch.arange(5)):
        chance = log_p[pair].sum().exp().detach()
        advantages = leave_one_out(penalized[pair][None])[0]
        estimate = estimate + chance * (advantages * log_p[pair]).sum() / 2
    (ours,) = torch.autograd.grad(estimate, logits, retain_graph=True)
    assert torch.allclose(ours, exact)
    as_loss = (log_p.exp().detach() * (log_p - anchor)).sum()
    (nothing,) = torch.autograd.grad(as_loss, logits)
    assert nothing.abs().max() < 1e-12
