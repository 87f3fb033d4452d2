"""Log-likelihoods of given tokens from hidden states and head, one figure a token.

What a loss does with them is its own affair: autograd hands back what each counts, and the
gradient is that of a cross-entropy with those weights. It is formed in the backward pass, from
logits computed a second time: only there are the weights known.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gemmule.losses.chunked_head import capped, chunk_size, tiles
from gemmule.losses.linear import IGNORED, linear_cross_entropy


def linear_log_likelihoods(
    x_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    cap: float | None,
    vocab: int | None = None,
    chunk: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Log-probability of each target, nats, fp32 [N]; 0 for IGNORED ones.

    Arguments as in losses.py. No more than a chunk's logits exist at a time, in either pass.
    """
    return _LogLikelihoods.apply(  # type: ignore[no-untyped-call]
        x_ND, weight_VD, target_N, cap, vocab, chunk, compiled
    )


class _LogLikelihoods(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        cap: float | None,
        vocab: int | None,
        chunk: int | None,
        compiled: bool,
    ) -> Tensor:
        ctx.save_for_backward(x_ND, weight_VD, target_N)
        ctx.settings = {"cap": cap, "vocab": vocab, "chunk": chunk, "compiled": compiled}
        weight_VD = weight_VD[:vocab].to(x_ND.dtype)
        size = min(chunk or chunk_size(len(weight_VD)), len(x_ND))
        buffer_CV = x_ND.new_empty(size, len(weight_VD))
        found = []
        for start in range(0, len(x_ND), size):
            rows = slice(start, min(start + size, len(x_ND)))
            raw_CV = torch.mm(x_ND[rows], weight_VD.T, out=buffer_CV[: rows.stop - start])
            for part, tokens in tiles(rows, len(weight_VD)):
                logits_CV, _ = capped(raw_CV[part], cap)
                hit_C = logits_CV.gather(1, target_N[tokens].clamp(min=0)[:, None])[:, 0]
                found.append(hit_C - logits_CV.logsumexp(-1))
        return torch.where(target_N == IGNORED, 0.0, torch.cat(found))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, target_N = ctx.saved_tensors
        x_ND = x_ND.detach().requires_grad_(ctx.needs_input_grad[0])
        weight_VD = weight_VD.detach().requires_grad_(ctx.needs_input_grad[1])
        with torch.enable_grad():
            loss = linear_cross_entropy(
                x_ND, weight_VD, target_N, token_weight_N=-grad_N, **ctx.settings
            )
        wanted = [t for t in (x_ND, weight_VD) if t.requires_grad]
        grads = iter(torch.autograd.grad(loss, wanted))
        found = [next(grads) if t.requires_grad else None for t in (x_ND, weight_VD)]
        return (*found, None, None, None, None, None)
