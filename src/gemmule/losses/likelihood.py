"""Log-likelihoods of given tokens from hidden states and head, one value per token.

What a loss does with them is up to the loss: autograd passes back what each token weighs, and the
gradient is that of a cross-entropy with those weights. It is formed in the backward pass, from
logits computed a second time, because the weights are known only there.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gemmule.losses.chunked_head import capped, raw_logits, tiles
from gemmule.losses.labels import IGNORED
from gemmule.losses.shard import Shard

# Cross-entropy of hidden states [N, D], head [V, D] and weights of the tokens [N], summed.
WeightedCrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]


class LogLikelihoods(torch.autograd.Function):
    """`Head.log_likelihoods`: holds one chunk's logits at a time, in either pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        cap: float | None,
        vocab_size: int | None,
        chunk: int | None,
        shard: Shard | None,
        weighted: WeightedCrossEntropy,
    ) -> Tensor:
        """Log-probability of each label, nats, fp32 [N]; 0 for IGNORED ones."""
        ctx.save_for_backward(x_ND, weight_VD)
        ctx.weighted = weighted
        weight_VD = weight_VD[:vocab_size].to(x_ND.dtype)
        labels, log_zs = [], []
        for rows, raw_CV in raw_logits(x_ND, weight_VD, chunk):
            for part, tokens in tiles(rows, len(weight_VD)):
                logits_CV, _ = capped(raw_CV[part], cap)
                index_C1 = labels_N[tokens].clamp(min=0)[:, None]
                if shard is None:
                    label_C1 = logits_CV.gather(1, index_C1)
                else:
                    index_C1, here_C1 = shard.place(index_C1)
                    label_C1 = logits_CV.gather(1, index_C1) * here_C1
                labels.append(label_C1[:, 0])
                log_zs.append(logits_CV.logsumexp(-1))
        label_N, log_z_N = torch.cat(labels), torch.cat(log_zs)
        if shard is None:
            value_N = label_N - log_z_N
        else:
            label_RN, log_z_RN = shard.gather(label_N, log_z_N)
            value_N = (label_RN.sum(0) - log_z_RN.logsumexp(0)).float()
        return torch.where(labels_N == IGNORED, 0.0, value_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of a cross-entropy in which each token weighs minus `grad_N`."""
        x_ND, weight_VD = ctx.saved_tensors
        x_ND = x_ND.detach().requires_grad_(ctx.needs_input_grad[0])
        weight_VD = weight_VD.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            loss = ctx.weighted(x_ND, weight_VD, -grad_N)
        inputs = [t for t in (x_ND, weight_VD) if t.requires_grad]
        grads = iter(torch.autograd.grad(loss, inputs))
        results = [next(grads) if t.requires_grad else None for t in (x_ND, weight_VD)]
        return (*results, None, None, None, None, None, None)
