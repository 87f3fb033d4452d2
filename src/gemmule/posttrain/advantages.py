"""Advantages: how much better an answer is than the others of its group, or of its step.

| estimator | advantage of answer i of a group of G |
|---|---|
| leave_one_out | r_i - mean of the others' (RLOO, arXiv 2402.14740) |
| centered | r_i - mean (Dr. GRPO, arXiv 2503.20783): (G - 1) / G of the first |
| standardized | (r_i - mean) / (std + 1e-4) (GRPO, arXiv 2402.03300), std with G - 1 as in TRL |

In a group whose rewards are equal all three are exactly 0: divided by a standard deviation that
rounding leaves, such a group would move the weights as far as any other.

Shapes: P prompts, G answers to each.
"""

import math

import torch
from torch import Tensor

from gemmule.errors import ConfigError

EQUAL = 1e-6  # largest spread of rewards that count as equal, relative to the largest one
STD_FLOOR = 1e-4  # added to standard deviations
WORSE_THAN_ANCHOR = -math.log(16)  # J-BOND's reward of an answer that loses to both of the anchor's


def all_equal(rewards_PG: Tensor) -> Tensor:
    """Whether all rewards of a group are equal, bool [P]: it then teaches nothing."""
    spread_P = rewards_PG.amax(-1) - rewards_PG.amin(-1)
    return spread_P <= EQUAL * rewards_PG.abs().amax(-1).clamp(min=1.0)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean reward of the other answers [P, G].

    Raises:
        ConfigError: for groups of one answer.
    """
    return centered(rewards_PG) * (_group_size(rewards_PG) / (_group_size(rewards_PG) - 1))


def centered(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean reward of the group [P, G].

    Raises:
        ConfigError: for groups of one answer.
    """
    _group_size(rewards_PG)
    advantages_PG = rewards_PG - rewards_PG.mean(-1, keepdim=True)
    return advantages_PG.masked_fill(all_equal(rewards_PG)[:, None], 0.0)


def standardized(rewards_PG: Tensor) -> Tensor:
    """Centered reward over the standard deviation of the group [P, G].

    Raises:
        ConfigError: for groups of one answer.
    """
    return centered(rewards_PG) / (rewards_PG.std(-1, keepdim=True) + STD_FLOOR)


def jbond_returns(rewards_P: Tensor, anchor_rewards_P2: Tensor, log_ratio_P: Tensor) -> Tensor:
    """J-BOND's return of the policy's answers (arXiv 2407.14622, algorithm 2) [P].

    Args:
        rewards_P: reward of the policy's answer.
        anchor_rewards_P2: rewards of two answers of the anchor.
        log_ratio_P: log-probability of the policy's answer under the policy, minus under the
            anchor.
    """
    worse_P = rewards_P < anchor_rewards_P2.amin(-1)
    return torch.where(worse_P, WORSE_THAN_ANCHOR, 0.0) - log_ratio_P


def _group_size(rewards_PG: Tensor) -> int:
    size = rewards_PG.shape[-1]
    if size < 2:
        raise ConfigError("an advantage needs at least two answers to compare: set samples to 2")
    return size
