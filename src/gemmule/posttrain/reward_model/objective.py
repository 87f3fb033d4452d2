"""Reward modeling on preference pairs (Bradley-Terry).

A pair's loss is -log sigmoid(r_w - r_l - margin) + c (r_w + r_l)^2, with the scores r of the chosen
and the rejected answer, a margin that says how much better the chosen one is (Llama 2, arXiv
2307.09288, equation 2), and a term that keeps the mean score of a pair at zero (arXiv 2312.09244).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_source import EXAMPLES
from gemmule.posttrain.reward_model.model import RewardModel
from gemmule.posttrain.segments import Segments
from gemmule.train.objective import Objective


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, center: float) -> Tensor:
    """Loss [P] of each pair, of its scores; see the module."""
    difference_P = chosen_P - rejected_P - margin_P
    return -F.logsigmoid(difference_P) + center * (chosen_P + rejected_P).square()


class RewardModeling(Objective):
    """The Bradley-Terry loss; the mean over the pairs of a step.

    Args:
        margins: margin of each training pair; 0 where it has none.
        center: weight of the term that keeps the mean score at zero.
    """

    def __init__(self, margins: Sequence[float], center: float) -> None:
        self.center, self._margins = center, torch.tensor(margins, dtype=torch.float64)

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Summed loss of the pairs; further sums: scores, margins, accuracy, as TRL names them."""
        assert isinstance(model, RewardModel)
        scores_S = model.scores(Segments.of(batch), compiled=self.compiled).double()
        pairs_P = batch.extras[EXAMPLES]
        margins_P = self._margins.to(pairs_P.device)[pairs_P]
        return score_sums(scores_S, margins_P, self.center)

    def denominator(self, batches: Sequence[Batch]) -> float:
        """Number of pairs."""
        return float(sum(len(batch.extras[EXAMPLES]) for batch in batches))

    def describe(self) -> dict[str, Any]:
        """The weight of the centering term, and whether pairs have margins."""
        return {
            "name": "reward modeling",
            "center": self.center,
            "margins": bool(self._margins.any()),
        }


def score_sums(
    scores_S: Tensor, margins_P: Tensor, center: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss of pairs, and further sums; scores 2i and 2i + 1 are the two of pair i."""
    chosen_P, rejected_P = scores_S[0::2], scores_S[1::2]
    total = bradley_terry(chosen_P, rejected_P, margins_P, center).sum()
    chosen_P, rejected_P = chosen_P.detach(), rejected_P.detach()
    sums = {
        "rewards/chosen": chosen_P.sum(),
        "rewards/rejected": rejected_P.sum(),
        "rewards/margins": (chosen_P - rejected_P).sum(),
        "rewards/accuracies": (chosen_P > rejected_P).sum(),
    }
    return total, sums
