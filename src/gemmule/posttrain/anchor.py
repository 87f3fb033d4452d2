"""The anchor: a copy of the model that a policy is kept close to, fixed or a moving average.

Shapes: B rows, T tokens of a row, A tokens of answers.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.train.adapters.attach import merged_weights


class Anchor:
    """A copy of a model as it is now.

    After each step its weights move to (1 - rate) anchor + rate model, as in WARP
    (arXiv 2406.16768, equation 3), where the rate is 0.01.

    Args:
        model: model to copy.
        rate: fraction of the model's weights in each step; 0: the anchor is fixed.

    Attributes:
        model: the copy, which gets no gradient.
        rate: as given.
    """

    def __init__(self, model: Gemma, rate: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.rate = rate

    @torch.no_grad()
    def update(self, model: Gemma) -> None:
        """Moves the weights after a step of `model`; those of an adapter are merged first."""
        if self.rate:
            for name, weight in merged_weights(model):
                self.model.get_parameter(name).lerp_(weight, self.rate)

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights by name, for training states; none of a fixed anchor."""
        if not self.rate:
            return {}
        return {f"anchor.{name}": p.detach() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def answer_logprobs(self, batch: Batch) -> Tensor:
        """Log-probability of the labels of each row, summed, nats, fp64 [B], on the CPU."""
        batch = batch.to(self.model.norm.weight.device)
        labels_N = batch.labels_BT.flatten()
        index_A = (labels_N != IGNORED).nonzero()[:, 0]
        x_BTD = self.model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        log_p_A = self.model.head.log_likelihoods(x_BTD.flatten(0, 1)[index_A], labels_N[index_A])
        B, T = batch.labels_BT.shape
        sums_B = torch.zeros(B, dtype=torch.float64, device=log_p_A.device)
        return sums_B.index_add_(0, index_A // T, log_p_A.double()).cpu()
