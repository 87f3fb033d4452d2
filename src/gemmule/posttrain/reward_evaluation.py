"""How well a model answers prompts that it is not trained on: reward, length, answers that end."""

from collections.abc import Sequence

from gemmule.posttrain.rewarded_steps import Rewarding, answer_metrics, reward_metrics
from gemmule.posttrain.rollouts import RolloutPrompt, RolloutSampler


class RewardEvaluation:
    """Mean reward of sampled answers.

    Args:
        sampler: samples the answers; its draws are the same at each measurement.
        rewarding: rewards them.
    """

    def __init__(self, sampler: RolloutSampler, rewarding: Rewarding) -> None:
        self._sampler, self._rewarding = sampler, rewarding

    def measure(self, prompts: Sequence[RolloutPrompt], tokens: int | None) -> dict[str, float]:
        """Metrics of the answers to prompts.

        Args:
            prompts: prompts of a split.
            tokens: number of tokens of prompts to read, spread evenly; None: all.
        """
        chosen = spread(prompts, tokens)
        groups = self._sampler.sample(chosen, range(len(chosen)))
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return {
            **reward_metrics(self._rewarding.rewards(groups)),
            **answer_metrics(rollouts),
            "prompts": len(chosen),
        }


def spread(prompts: Sequence[RolloutPrompt], tokens: int | None) -> Sequence[RolloutPrompt]:
    """Prompts spread evenly over a split, with about `tokens` tokens in all; None: all."""
    if tokens is None:
        return prompts
    count = len(prompts)
    mean = sum(len(prompt.ids) for prompt in prompts) / count
    fewer = min(count, max(1, int(tokens / mean)))
    return [prompts[i * count // fewer] for i in range(fewer)]
