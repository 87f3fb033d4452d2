"""Losses from hidden states and heads, without the logits of a whole batch ever existing.

The head's product, the soft cap and the softmax are done chunk by chunk of tokens, and each
chunk's gradient is formed while its logits are still there, so neither the forward nor the
backward pass holds [tokens, vocabulary] beyond one chunk. Pure functions, with autograd.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gemmule.model.soft_cap import fast_tanh

IGNORED = -100
CHUNK_BYTES = 16 * 2**20  # fp32 logits of one chunk: small enough for a last-level cache
MIN_CHUNK, MAX_CHUNK = 64, 4096  # fewer rows waste the matrix product

LARGEST_SAFE_LOGIT = 60.0  # exp(60) times a million words is far below fp32's largest number

Kernel = Callable[..., tuple[Tensor, ...]]


def chunk_size(vocab: int) -> int:
    """Tokens per chunk, so that one chunk's fp32 logits take about CHUNK_BYTES."""
    return min(MAX_CHUNK, max(MIN_CHUNK, CHUNK_BYTES // (4 * vocab) // 64 * 64))


def _capped(raw: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """Capped logits, and their slope d(capped)/d(raw)."""
    raw = raw.float()
    if cap is None:
        return raw, torch.ones_like(raw)
    t = fast_tanh(raw / cap)
    return t * cap, 1.0 - t * t


def _softmax(logits_CV: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """Probabilities [C, V] and log-sum-exp [C, 1] of logits within (-bound, bound)."""
    if bound is None or bound > LARGEST_SAFE_LOGIT:
        log_z_C1 = torch.logsumexp(logits_CV, -1, keepdim=True)
        return (logits_CV - log_z_C1).exp(), log_z_C1
    e_CV = logits_CV.exp()  # cannot overflow: no pass for the maximum
    z_C1 = e_CV.sum(-1, keepdim=True)
    return e_CV * (1.0 / z_C1), z_C1.log()


def _cross_entropy_chunk(raw_CV: Tensor, keep_C: Tensor, cap: float | None) -> tuple[Tensor, ...]:
    """Log-sum-exp of each token, and the gradient but for its part at the target."""
    logits, slope = _capped(raw_CV, cap)
    p, log_z_C1 = _softmax(logits, cap)
    return log_z_C1.squeeze(-1), p * slope * keep_C[:, None]


def _distillation_chunk(
    raw_CV: Tensor,
    teacher_raw_CV: Tensor,
    keep_C: Tensor,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, ...]:
    """Log-sum-exp at temperature 1, gradient but for its part at the target, and soft loss."""
    logits, slope = _capped(raw_CV, cap)
    teacher_logits, _ = _capped(teacher_raw_CV, teacher_cap)
    hot, hot_cap = logits / temperature, cap and cap / temperature
    p, log_z_C1 = _softmax(hot, hot_cap)
    q, _ = _softmax(teacher_logits / temperature, teacher_cap and teacher_cap / temperature)
    soft_C = log_z_C1.squeeze(-1) - (q * hot).sum(-1)
    # Temperature squared keeps the gradient's size, as Hinton et al. (arXiv 1503.02531) do; one
    # of the two factors cancels against d(logit / temperature).
    grad_CV = (1.0 - alpha) * temperature * (p - q)
    if temperature != 1.0:
        p, log_z_C1 = _softmax(logits, cap)
    if alpha:
        grad_CV = grad_CV + alpha * p
    loss_C = (1.0 - alpha) * temperature**2 * soft_C
    return log_z_C1.squeeze(-1), grad_CV * slope * keep_C[:, None], loss_C * keep_C


def _at_target(
    raw_CV: Tensor, target_C: Tensor, keep_C: Tensor, log_z_C: Tensor, cap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed next-token loss, and where and what the targets take from the gradient."""
    index_C1 = target_C.clamp(min=0)[:, None]
    logit_C1, slope_C1 = _capped(raw_CV.gather(1, index_C1), cap)
    nll = ((log_z_C - logit_C1[:, 0]) * keep_C).sum()
    return nll, index_C1, slope_C1 * keep_C[:, None]


@functools.cache
def _compiled(kernel: Kernel) -> Kernel:
    return torch.compile(kernel, dynamic=False)


class _ChunkedHead(torch.autograd.Function):
    """Runs a chunk kernel over all tokens; `scalars` beyond the loss are reported, not trained."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_VD: Tensor, chunk: int, step: Callable[..., Any]
    ) -> tuple[Tensor, ...]:
        weight = weight_VD.to(x_ND.dtype)
        need_x, need_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x_ND) if need_x else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        sums: list[Tensor] = []
        for start in range(0, len(x_ND), chunk):
            rows = slice(start, start + chunk)
            loss, grad_CV, *others = step(x_ND[rows] @ weight.T, rows)
            grad_CV = grad_CV.to(x_ND.dtype)
            if grad_x is not None:
                torch.mm(grad_CV, weight, out=grad_x[rows])
            if grad_weight is not None:
                if grad_weight.dtype == grad_CV.dtype:
                    grad_weight.addmm_(grad_CV.T, x_ND[rows])
                else:
                    grad_weight += grad_CV.T @ x_ND[rows]
            # Sums of chunk sums in float64: no drift however many chunks there are.
            sums.append(torch.stack([loss, *others]).double())
        ctx.grads = (grad_x, grad_weight, weight_VD.dtype)
        return tuple(torch.stack(sums).sum(0).float().unbind())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, weight_dtype = ctx.grads
        return (
            None if grad_x is None else grad_x * grad_loss.to(grad_x.dtype),
            None if grad_weight is None else (grad_weight * grad_loss).to(weight_dtype),
            None,
            None,
        )


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    cap: float | None,
    chunk: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Sum over tokens of the next-token loss, in nats.

    Args:
        x_ND: final hidden states.
        weight_VD: the head (the tied embedding).
        target_N: ids; IGNORED (-100) ones count for nothing.
        cap: the final soft cap, applied inside; None for none.
        chunk: tokens per chunk; by default so that its logits take about 16 MiB.
        compiled: whether the chunk's element-wise part goes through torch.compile.
    """
    kernel = _compiled(_cross_entropy_chunk) if compiled else _cross_entropy_chunk
    keep_N = (target_N != IGNORED).float()

    def step(raw_CV: Tensor, rows: slice) -> tuple[Tensor, ...]:
        log_z_C, grad_CV = kernel(raw_CV, keep_N[rows], cap)
        nll, index, hit = _at_target(raw_CV, target_N[rows], keep_N[rows], log_z_C, cap)
        return nll, grad_CV.scatter_add_(1, index, -hit)

    (loss,) = _ChunkedHead.apply(x_ND, weight_VD, chunk or chunk_size(len(weight_VD)), step)  # type: ignore[no-untyped-call]
    return loss


def linear_distillation(
    x_ND: Tensor,
    weight_VD: Tensor,
    teacher_x_ND: Tensor,
    teacher_weight_VD: Tensor,
    target_N: Tensor,
    *,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float = 1.0,
    alpha: float = 0.0,
    chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of (1 - alpha) T^2 (-sum_v P_teacher log P_student) + alpha (-log P_student).

    The report's objective (section 3) is temperature 1 and alpha 0. Teacher arguments as the
    student's; `target_N` also says which tokens count. No gradient flows to the teacher.

    Returns:
        The loss, and beside it the next-token loss of the student (not trained on unless alpha).
    """
    kernel = _compiled(_distillation_chunk) if compiled else _distillation_chunk
    teacher_x_ND, teacher_weight_VD = teacher_x_ND.detach(), teacher_weight_VD.detach()
    teacher_weight_VD = teacher_weight_VD.to(teacher_x_ND.dtype)

    keep_N = (target_N != IGNORED).float()

    def step(raw_CV: Tensor, rows: slice) -> tuple[Tensor, ...]:
        teacher_raw_CV = teacher_x_ND[rows] @ teacher_weight_VD.T
        keep_C = keep_N[rows]
        log_z_C, grad_CV, soft_C = kernel(
            raw_CV, teacher_raw_CV, keep_C, cap, teacher_cap, temperature, alpha
        )
        nll, index, hit = _at_target(raw_CV, target_N[rows], keep_C, log_z_C, cap)
        if alpha:
            grad_CV.scatter_add_(1, index, -alpha * hit)
        return soft_C.sum() + alpha * nll, grad_CV, nll

    loss, hard = _ChunkedHead.apply(x_ND, weight_VD, chunk or chunk_size(len(weight_VD)), step)  # type: ignore[no-untyped-call]
    return loss, hard.detach()
