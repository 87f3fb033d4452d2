"""A linear layer with a LoRA or DoRA adapter, and an embedding with a few trained rows.

They take the place of Gemma's own modules. Their `weight` is the merged weight, so that whatever
reads weights (the engine's native runner, the head) sees the adapted model.

Shapes: I inputs, O outputs, R rank, V vocabulary, D model, K trained rows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaptedLinear(nn.Module):
    """A frozen matrix W [O, I] plus a trained product of rank R, and in DoRA trained magnitudes.

    LoRA (arXiv 2106.09685, section 4.1): y = W x + s B A x with s = alpha / R. B starts at zero, so
    that the first output is the base's, bit for bit.

    DoRA (arXiv 2402.09353, equation 5): row i of W + s B A is divided by its norm and multiplied by
    a trained magnitude. The norm is a constant to the gradient (its section 4.3).

    Args:
        linear: layer to adapt; its weight is shared and no longer trained.
        rank: rank of the product.
        alpha: numerator of the scale.
        dora: whether to train magnitudes.
        generator: draws A as peft does, uniformly within 1 / sqrt(I).
    """

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, dora: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.scale = alpha / rank
        self.frozen = nn.Parameter(linear.weight.detach(), requires_grad=False)
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.uniform_(self.lora_A, -(inputs**-0.5), inputs**-0.5, generator=generator)
        self.magnitude = nn.Parameter(_row_norms(self._sum())) if dora else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        autocast = torch.is_autocast_enabled(x.device.type)
        frozen = self.frozen if autocast else self.frozen.to(x.dtype)
        y = F.linear(x, frozen)
        change = F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale
        if self.magnitude is None:
            return y + change
        ratio = (self.magnitude / _row_norms(self._sum())).to(y.dtype)
        return y + ((ratio - 1) * y + ratio * change)

    @property
    def weight(self) -> Tensor:
        """The merged matrix [O, I], in the dtype of the frozen one."""
        merged = self._sum()
        if self.magnitude is not None:
            merged = (self.magnitude / _row_norms(merged))[:, None] * merged
        return merged.to(self.frozen.dtype)

    def plain(self) -> nn.Linear:
        """A plain layer with the merged matrix."""
        outputs, inputs = self.frozen.shape
        linear = nn.Linear(inputs, outputs, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.detach())
        return linear

    def _sum(self) -> Tensor:
        """W + s B A, in fp32 or wider."""
        return self.frozen + self.lora_B @ self.lora_A * self.scale


def _row_norms(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix.detach(), dim=1)


class AdaptedEmbedding(nn.Module):
    """A frozen embedding [V, D] with K trained rows, for the input and for the tied head.

    Args:
        embedding: embedding to adapt; its weight is shared and no longer trained.
        ids: tokens whose rows are trained.
    """

    ids: Tensor

    def __init__(self, embedding: nn.Embedding, ids: tuple[int, ...]) -> None:
        super().__init__()
        self.frozen = nn.Parameter(embedding.weight.detach(), requires_grad=False)
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.rows = nn.Parameter(self.frozen[self.ids].clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] to [..., D]."""
        equal = tokens[..., None] == self.ids
        trained = F.embedding(equal.int().argmax(-1), self.rows)
        return torch.where(equal.any(-1, keepdim=True), trained, F.embedding(tokens, self.frozen))

    @property
    def weight(self) -> Tensor:
        """The whole matrix [V, D] with the trained rows in their places; a copy."""
        return self.frozen.index_copy(0, self.ids, self.rows)

    def plain(self) -> nn.Embedding:
        """A plain embedding with the trained rows in their places."""
        return nn.Embedding.from_pretrained(self.weight.detach())
