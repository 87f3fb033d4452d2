"""Whether the sampler and the trainer have the same distribution, at every step.

Both use the same weights, so that log-probabilities of the sampled tokens differ by rounding alone
(about 1e-5 nats in float32). A lost soft cap or mask, stale weights or a truncated distribution
show as 0.1 and more.
"""

import torch
from torch import Tensor

from gemmule.errors import ConfigError, TrainingError
from gemmule.train.config import RunConfig

BOUND = 0.05  # nats


def check_dtype(config: RunConfig) -> None:
    """Refuses a trainer in bfloat16, which is one more difference from the sampler.

    Raises:
        ConfigError: for that dtype.
    """
    if config.runtime.dtype == "bfloat16":
        raise ConfigError(
            'runtime.dtype = "bfloat16": answers are sampled with the weights in float32, and the '
            'trainer must have the same probabilities: set runtime.dtype = "float32"'
        )


class SamplerCheck:
    """Compares log-probabilities of sampled tokens, and stops the run where they differ.

    Args:
        bound: largest difference of a token's log-probability, nats, that does not stop the run.
    """

    def __init__(self, bound: float = BOUND) -> None:
        self._bound = bound
        self._max, self._sum, self._count = 0.0, 0.0, 0

    @torch.no_grad()
    def compare(self, trainer_A: Tensor, sampler_A: Tensor) -> None:
        """Takes the log-probabilities of the tokens of a micro-batch, before its backward pass.

        Raises:
            TrainingError: when one differs by more than the bound.
        """
        if not len(trainer_A):
            return
        difference_A = (trainer_A.double() - sampler_A.double()).abs()
        largest, total = torch.stack((difference_A.max(), difference_A.sum())).tolist()
        if not largest <= self._bound:  # NaN is caught, too
            raise TrainingError(
                "sampler and trainer disagree: the log-probability of a sampled token differs by "
                f"{largest:.3g} nats, where at most {self._bound} is rounding: train in float32 "
                "(runtime.dtype), or raise objective.max_logp_difference"
            )
        self._max = max(self._max, largest)
        self._sum, self._count = self._sum + total, self._count + len(difference_A)

    def after_step(self) -> dict[str, float]:
        """The differences of the step that has ended, under TRL's names."""
        if not self._count:
            return {}
        metrics = {
            "sampling/logp_difference/mean": self._sum / self._count,
            "sampling/logp_difference/max": self._max,
        }
        self._max, self._sum, self._count = 0.0, 0.0, 0
        return metrics
