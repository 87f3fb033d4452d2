"""Gemma with packed matrices: the same forward pass with other linear layers."""

import torch
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import Undrawn
from gemmule.checkpoints.packed.reader import EMBEDDING, QuantizedModel
from gemmule.losses.soft_cap import soft_cap
from gemmule.model.gemma import Gemma, RMSNorm
from gemmule.quant.linear import PackedEmbedding, PackedLinear


class QuantizedGemma(Gemma):
    """Token ids to soft-capped logits, fp32, on the CPU; for inference only.

    Args:
        model: the packed model, whose matrices are used without a copy.
        plain: use the reference arithmetic instead of kernels, for comparisons.

    Attributes:
        huge_pages: the model's.
    """

    def __init__(self, model: QuantizedModel, plain: bool = False) -> None:
        with torch.device("meta"), Undrawn():
            super().__init__(model.config)
        for name, matrix in model.matrices.items():
            if name != EMBEDDING:
                parent, _, child = name.removesuffix(".weight").rpartition(".")
                setattr(self.get_submodule(parent), child, PackedLinear(matrix, plain))
        for name, norm in model.norms.items():
            owner = self.get_submodule(name.removesuffix(".weight"))
            assert isinstance(owner, RMSNorm)
            owner.weight = nn.Parameter(norm, requires_grad=False)
        self.huge_pages = model.huge_pages
        self.embed_tokens = PackedEmbedding(model.matrices[EMBEDDING])  # type: ignore[assignment]
        self.packed_head = PackedLinear(model.matrices[EMBEDDING], plain)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Soft-capped logits of hidden states, fp32, from the packed head."""
        return soft_cap(self.packed_head(x_BTD), self.config.final_logit_softcapping)
