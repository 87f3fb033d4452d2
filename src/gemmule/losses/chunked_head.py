"""The head product in chunks of tokens, each chunk's gradient formed while its logits exist.

One buffer holds a chunk's logits and then, in their place, the gradient of the loss with respect
to them. Element-wise work goes through the chunk in tiles of a few rows, so that its temporaries
stay in the processor's cache, however large the vocabulary.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gemmule.losses.shard import Shard
from gemmule.losses.soft_cap import LARGEST_SAFE_LOGIT, fast_tanh

CHUNK_BYTES = 16 * 2**20  # fp32 logits of one chunk: small enough for a last-level cache
MIN_CHUNK, MAX_CHUNK = 128, 4096  # fewer rows waste the matrix product
TILE_BYTES = 8 * 2**20  # fp32 logits of one tile
BLOCK = 2**22  # elements of a head's gradient that are converted at once

LONG_SUM, SUM_BLOCK = 16384, 512  # terms from which compiled sums go by blocks, and their size

Kernel = Callable[..., Any]
Step = Callable[[Tensor, slice], Sequence[Tensor]]


def chunk_size(vocab_size: int) -> int:
    """Tokens per chunk, so that one chunk's fp32 logits take about CHUNK_BYTES."""
    return min(MAX_CHUNK, max(MIN_CHUNK, CHUNK_BYTES // (4 * vocab_size) // 64 * 64))


def row_chunks(count: int, chunk: int | None, vocab_size: int) -> list[slice]:
    """Slices of `chunk` tokens each (None: chunk_size) that cover `count` tokens in order."""
    size = chunk or chunk_size(vocab_size)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def raw_logits(
    x_ND: Tensor, weight_VD: Tensor, chunk: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """The head product of a chunk of tokens at a time, without the soft cap.

    Args:
        x_ND: final hidden states.
        weight_VD: head, in the same dtype.
        chunk: tokens per chunk; None: chunk_size.

    Yields:
        Which tokens, as a slice, and their raw logits [C, V]. The next chunk overwrites them: all
        share one buffer.
    """
    chunks = row_chunks(len(x_ND), chunk, len(weight_VD))
    buffer_CV = x_ND.new_empty(min(chunk or chunk_size(len(weight_VD)), len(x_ND)), len(weight_VD))
    for rows in chunks:
        yield rows, torch.mm(x_ND[rows], weight_VD.T, out=buffer_CV[: rows.stop - rows.start])


def tiles(rows: slice, vocab_size: int) -> list[tuple[slice, slice]]:
    """Rows of a chunk in tiles of about TILE_BYTES: where in the chunk, and which tokens."""
    size = max(1, TILE_BYTES // (4 * vocab_size))
    count = rows.stop - rows.start
    starts = range(0, count, size)
    return [
        (slice(i, min(i + size, count)), slice(rows.start + i, rows.start + min(i + size, count)))
        for i in starts
    ]


def capped(raw: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Capped logits, and their slope d(capped)/d(raw)."""
    raw = raw.float()
    if cap is None:
        return raw, torch.ones_like(raw)
    t = fast_tanh(raw / cap)
    return t * cap, 1.0 - t * t


def softmax(logits_CV: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """Probabilities [C, V] and log-sum-exp [C, 1] of logits within (-bound, bound).

    With a small bound the exponentials cannot overflow, and the pass for the maximum is left out.
    """
    if bound is None or bound > LARGEST_SAFE_LOGIT:
        if torch.compiler.is_compiling():
            top_C1 = logits_CV.amax(-1, keepdim=True)
            log_z_C1 = total((logits_CV - top_C1).exp())[:, None].log() + top_C1
        else:
            log_z_C1 = torch.logsumexp(logits_CV, -1, keepdim=True)
        return (logits_CV - log_z_C1).exp(), log_z_C1
    e_CV = logits_CV.exp()
    z_C1 = total(e_CV)[:, None]
    return e_CV * (1.0 / z_C1), z_C1.log()


def total(x_CV: Tensor) -> Tensor:
    """Sum over the vocabulary [C].

    Compiled code adds one term after the other, and in fp32 the many small terms of a large
    vocabulary are lost in a sum that is already large: compiled sums therefore add up sums of
    blocks. Eager sums are pairwise already.
    """
    vocab_size = x_CV.shape[1]
    if vocab_size <= LONG_SUM or not torch.compiler.is_compiling():
        return x_CV.sum(-1)
    whole = vocab_size // SUM_BLOCK * SUM_BLOCK
    blocks = x_CV[:, :whole].unflatten(1, (-1, SUM_BLOCK)).sum(-1).sum(-1)
    return blocks + x_CV[:, whole:].sum(-1)


@functools.cache
def _compiled(kernel: Kernel) -> Kernel:
    return torch.compile(kernel, dynamic=False)


def maybe_compiled(kernel: Kernel, compiled: bool) -> Kernel:
    """The kernel, through torch.compile when `compiled`."""
    return _compiled(kernel) if compiled else kernel


class ChunkedHead(torch.autograd.Function):
    """Runs a step over all tokens; of the sums it returns, the first is the loss.

    A step gets a chunk's raw logits and the slice of the tokens they belong to. It leaves the
    gradient of the loss with respect to the raw logits in their place, and returns sums over the
    chunk's tokens. The sums after the first are reported, not trained on.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        weight_VD: Tensor,
        vocab_size: int | None,
        chunk: int | None,
        step: Step,
        shard: Shard | None,
    ) -> tuple[Tensor, ...]:
        """All sums, in fp32; the gradients are formed on the way.

        With a shard of the head, `vocab_size` counts its own real rows. Each rank has the gradient
        of its rows, and the sum over the ranks of what they give for the hidden states.
        """
        weight = weight_VD[:vocab_size].to(x_ND.dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x_ND) if need_x else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        sums: list[Tensor] = []
        for rows, raw_CV in raw_logits(x_ND, weight, chunk):
            # Sums of chunk sums in float64: no drift however many chunks there are.
            sums.append(torch.stack(list(step(raw_CV, rows))).double())
            grad_CV = raw_CV
            if grad_x is not None:
                torch.mm(grad_CV, weight, out=grad_x[rows])
            if grad_weight is not None:
                _add_product(grad_weight[:vocab_size], grad_CV, x_ND[rows])
        if shard is not None and grad_x is not None:
            shard.add_up(grad_x)
        ctx.grads = (grad_x, grad_weight, weight_VD.dtype)
        return tuple(torch.stack(sums).sum(0).float().unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the gradients that the forward pass formed."""
        if ctx.grads is None:
            raise RuntimeError(
                "a chunked loss hands its gradients over once: compute it again for another "
                "backward pass"
            )
        grad_x, grad_weight, weight_dtype = ctx.grads
        ctx.grads = None  # in place, so that no second gradient of a large head is held
        return (
            None if grad_x is None else grad_x.mul_(grad_loss.to(grad_x.dtype)),
            None if grad_weight is None else grad_weight.mul_(grad_loss).to(weight_dtype),
            None,
            None,
            None,
            None,
        )


def _add_product(grad_weight_VD: Tensor, grad_CV: Tensor, x_CD: Tensor) -> None:
    """grad_weight += grad.T @ x, in fp32 whatever the dtype of the inputs."""
    if grad_weight_VD.dtype == grad_CV.dtype:
        grad_weight_VD.addmm_(grad_CV.T, x_CD)
        return
    size = max(1, BLOCK // x_CD.shape[1])
    for start in range(0, len(grad_weight_VD), size):
        ids = slice(start, start + size)
        grad_weight_VD[ids] += grad_CV[:, ids].T @ x_CD
