"""How well a model answers prompts that it is not trained on: reward, length, answers that end."""

from collections.abc import Sequence

from gemmule.posttrain.rewarded_steps import Rewarding, answer_metrics, reward_metrics
from gemmule.posttrain.rollouts import RolloutPrompt, RolloutSampler
from gemmule.posttrain.spread import spread


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
        lengths = [len(prompt.ids) for prompt in prompts]
        chosen = [prompts[i] for i in spread(lengths, tokens)]
        groups = self._sampler.sample(chosen, range(len(chosen)))
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return {
            **reward_metrics(self._rewarding.rewards(groups)),
            **answer_metrics(rollouts),
            "prompts": len(chosen),
        }
