"""From the rollouts of a step to its batches: rewards, distance from the anchor, advantages.

Shapes: P prompts, G answers to each, B rows (P x G of them in a step).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.labels import IGNORED
from gemmule.posttrain import advantages
from gemmule.posttrain.anchor import Anchor
from gemmule.posttrain.answer_rows import batches_of_rollouts
from gemmule.posttrain.objectives.policy_gradient import FROM_ANCHOR, Normalization
from gemmule.posttrain.rewards.protocol import Reward, scores
from gemmule.posttrain.rollouts import Group, Rollout, RolloutSampler

Estimator = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Rewarding:
    """How answers are rewarded, and how far the policy may go for it.

    Attributes:
        reward: scores answers.
        cut_reward: reward of an answer that a limit cut, whatever it says.
        anchor: model to stay close to; None: none.
        beta: nats of log ratio to the anchor, summed over an answer, that cost one point of reward,
            as a weight; this estimator (k1) in the reward has an unbiased gradient.
        normalization: weights of the tokens of an answer.
        micro_batch: rows of a batch.
    """

    reward: Reward
    cut_reward: float
    anchor: Anchor | None
    beta: float
    normalization: Normalization
    micro_batch: int

    def rewards(self, groups: Sequence[Group]) -> Tensor:
        """Rewards of answers, fp64 [P, G].

        Raises:
            DataError: for a reward that is not finite.
        """
        answers = [answer for group in groups for answer in group.answers()]
        values = scores(self.reward, answers, self.cut_reward)
        return torch.tensor(values, dtype=torch.float64).view(len(groups), -1)

    def log_ratios(self, batches: Sequence[Batch], rollouts: Sequence[Rollout]) -> Tensor | None:
        """Log-probability of each answer under the policy minus under the anchor, fp64 [B]."""
        if self.anchor is None:
            return None
        anchor_B = torch.cat([self.anchor.answer_logprobs(batch) for batch in batches])
        own_B = torch.tensor([sum(r.logprobs) for r in rollouts], dtype=torch.float64)
        return own_B - anchor_B

    def weighted(
        self, batches: Sequence[Batch], rollouts: Sequence[Rollout], weights_B: Tensor
    ) -> list[Batch]:
        """The micro-batches with each answer's weight at its tokens."""
        per_token = [self.normalization.token_weight(len(r.answer)) for r in rollouts]
        weights = iter((weights_B * torch.tensor(per_token, dtype=torch.float64)).split(1))
        return [_with_weights(batch, weights) for batch in batches]


def _with_weights(batch: Batch, weights: Iterator[Tensor]) -> Batch:
    rows_B1 = torch.stack([next(weights) for _ in batch.labels_BT]).float()
    return dataclasses.replace(batch, weights_BT=rows_B1 * (batch.labels_BT != IGNORED))


class GroupSteps:
    """RLOO and GRPO: an answer's advantage is over the other answers to its prompt.

    Args:
        rewarding: rewards and distance.
        estimator: advantage of rewards [P, G].
        baseline: the same of distances, which are never divided by a standard deviation: of equal
            rewards the deviation is rounding, or the distances' own.
    """

    def __init__(self, rewarding: Rewarding, estimator: Estimator, baseline: Estimator) -> None:
        self._rewarding, self._estimator, self._baseline = rewarding, estimator, baseline
        self.metrics: Mapping[str, float] = {}

    def after_step(self) -> Mapping[str, float]:
        """Metrics of the step's rewards and answers."""
        return self.metrics

    def build(self, groups: Sequence[Group]) -> list[Batch]:
        """The step's micro-batches."""
        how = self._rewarding
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        rewards_PG, batches = how.rewards(groups), batches_of_rollouts(rollouts, how.micro_batch)
        advantages_PG = self._estimator(rewards_PG)
        ratios_B = how.log_ratios(batches, rollouts)
        if ratios_B is not None and how.beta:
            advantages_PG = advantages_PG - how.beta * self._baseline(ratios_B.view_as(rewards_PG))
        self.metrics = {
            **reward_metrics(rewards_PG),
            **answer_metrics(rollouts),
            **({} if ratios_B is None else {"kl": ratios_B.mean().item()}),
        }
        return how.weighted(batches, rollouts, advantages_PG.flatten())


class JBondSteps:
    """J-BOND: imitates the better of two answers of the anchor, and beats the worse one.

    The weights of arXiv 2407.14622, algorithm 2: 1 - beta on the better of the anchor's two
    answers, beta (R - baseline) on the policy's own, with the baseline the mean return of the
    step's other prompts.

    Args:
        rewarding: rewards and distance; its anchor is the one that answers, and its beta the weight
            of the regularization beyond the returns' own (the paper's gamma).
        anchor_sampler: samples two answers of the anchor.
        backward_weight: the paper's beta.
    """

    def __init__(
        self, rewarding: Rewarding, anchor_sampler: RolloutSampler, backward_weight: float
    ) -> None:
        self._rewarding, self._sampler = rewarding, anchor_sampler
        self._backward_weight = backward_weight
        self.metrics: Mapping[str, float] = {}

    def after_step(self) -> Mapping[str, float]:
        """Metrics of the step's rewards and of the policy's answers."""
        return self.metrics

    def build(self, groups: Sequence[Group]) -> list[Batch]:
        """The step's micro-batches: for each prompt the policy's answer, then the anchor's."""
        how = self._rewarding
        theirs = self._sampler.sample([g.prompt for g in groups], [g.position for g in groups])
        own_P1, anchor_P2 = how.rewards(groups), how.rewards(theirs)
        best_P = anchor_P2.argmax(-1).tolist()
        own = [group.rollouts[0] for group in groups]
        best = [group.rollouts[i] for group, i in zip(theirs, best_P, strict=True)]
        rollouts = [r for pair in zip(own, best, strict=True) for r in pair]
        batches = batches_of_rollouts(rollouts, how.micro_batch)
        ratios_B = how.log_ratios(batches, rollouts)
        assert ratios_B is not None
        ratios_P = ratios_B[::2]
        returns_P = advantages.jbond_returns(own_P1[:, 0], anchor_P2, ratios_P)
        backward_P = self._backward_weight * _over_others(returns_P)
        backward_P = backward_P - how.beta * _over_others(ratios_P)
        forward_P = torch.full_like(backward_P, 1 - self._backward_weight)
        self.metrics = {
            **reward_metrics(own_P1),
            **answer_metrics(own),
            "kl": ratios_P.mean().item(),
            "reward/anchor": anchor_P2.mean().item(),
            "reward/best_of_two": anchor_P2.amax(-1).mean().item(),
        }
        weights_B = torch.stack((backward_P, forward_P), dim=-1).flatten()
        return [_marked(b) for b in how.weighted(batches, rollouts, weights_B)]


def _marked(batch: Batch) -> Batch:
    """A batch that starts with the policy's answer and has the anchor's in every second row."""
    from_anchor_B = torch.arange(len(batch.tokens_BT)) % 2 == 1
    return dataclasses.replace(batch, extras={**batch.extras, FROM_ANCHOR: from_anchor_B})


def _over_others(values_P: Tensor) -> Tensor:
    """Each value minus the mean of the others; of one value alone, itself."""
    return advantages.leave_one_out(values_P[None])[0] if len(values_P) > 1 else values_P


def reward_metrics(rewards_PG: Tensor) -> dict[str, float]:
    """Mean reward, its standard deviation within groups, and groups without any spread."""
    metrics = {"reward": rewards_PG.mean().item()}
    if rewards_PG.shape[-1] > 1:
        metrics["reward_std"] = rewards_PG.std(-1).mean().item()
        metrics["frac_reward_zero_std"] = advantages.all_equal(rewards_PG).double().mean().item()
    return metrics


def answer_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Length of answers, those that a limit cut, and an estimate of the entropy per token."""
    tokens = sum(len(r.answer) for r in rollouts)
    return {
        "completions/mean_length": tokens / len(rollouts),
        "completions/clipped_ratio": sum(not r.finished for r in rollouts) / len(rollouts),
        "entropy": -sum(sum(r.logprobs) for r in rollouts) / tokens,
    }
