"""What a training step minimizes: a summed loss, its denominator, and how a manifest describes it.

An objective adds up its loss over a micro-batch; the loop divides by the denominator of the whole
step, so that every label (or answer, or pair) of a step weighs the same, whatever its micro-batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma


def label_weight(batch: Batch) -> float:
    """Sum of the weights of a batch's labels; without weights, their number."""
    labeled_BT = batch.labels_BT != IGNORED
    if batch.weights_BT is None:
        return float(labeled_BT.sum())
    return float(batch.weights_BT[labeled_BT].sum(dtype=torch.float64))


class Objective(Protocol):
    """A loss. A class that derives from this one inherits what language modeling needs.

    Attributes:
        compiled: whether the element-wise part of the losses goes through torch.compile.
    """

    compiled: bool = False

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The summed loss of a micro-batch, with its graph, and further sums to log by name.

        The loop logs each sum divided by the step's denominator, under its name.
        """
        ...

    def begin_step(self, model: Gemma, batches: Sequence[Batch]) -> None:
        """Called before the forward passes of a step, for what its loss needs of the whole step.

        Args:
            model: the model.
            batches: all micro-batches of the step, on the CPU.
        """
        return

    def denominator(self, batches: Sequence[Batch]) -> float:
        """What the summed loss of a step is divided by: the weight of its labels.

        Without weights that is the number of labels. The loop adds up that of all ranks, and
        divides by 1 where there is nothing to learn.
        """
        return float(sum(map(label_weight, batches)))

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Floating-point operations of a training step per token of its batches.

        Forward and backward pass of the model: three forward passes.
        """
        return 3 * model.config.forward_flops_per_token(seq_len)

    def describe(self) -> dict[str, Any]:
        """The entry `objective` of manifest.json: "name", and the settings that define the loss."""
        ...

    def models(self) -> Sequence[Gemma]:
        """Further models, not trained: ranks that divide the trained one divide them too."""
        return ()

    def prepare(self, device: str, compiled: bool) -> None:
        """Gets ready for training, before the first step.

        Args:
            device: device of the model; whatever else the loss needs is moved there.
            compiled: whether the model's blocks are compiled.
        """
        self.compiled = compiled
