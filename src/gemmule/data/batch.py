"""A batch of token sequences: what a source yields and an objective reads.

Shape letters: B sequences of a batch, T tokens of a sequence.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """B sequences of T tokens, with their labels.

    Attributes:
        tokens_BT: input ids, int64.
        labels_BT: the token to predict at each position, int64; IGNORED (gemmule.losses.labels)
            where nothing is to be predicted: at the end of a document, at padding, and at tokens
            that the data's loss mask excludes.
        doc_ids_BT: number of each token's document within its sequence, counted from 1, int64;
            0 is padding. A token attends only to its own document.
        weights_BT: weight of each label in the loss, fp32; None: 1 each.
        extras: further tensors by name, such as the indices by which an objective looks up recorded
            teacher targets, or advantages and old log-probabilities. Only the source and the
            objective that agree on a name read it.
    """

    tokens_BT: Tensor
    labels_BT: Tensor
    doc_ids_BT: Tensor
    weights_BT: Tensor | None = None
    extras: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Batch":
        """A copy on another device."""
        return Batch(
            self.tokens_BT.to(device),
            self.labels_BT.to(device),
            self.doc_ids_BT.to(device),
            None if self.weights_BT is None else self.weights_BT.to(device),
            {name: tensor.to(device) for name, tensor in self.extras.items()},
        )
