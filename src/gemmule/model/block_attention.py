"""Attention within whole sequences in blocks, for training, prefill and scoring.

The same result as `attention.attend`, the plain version, for less work:

- a block of queries meets only the keys it may see, so that a local layer costs O(T x window)
  and a global one half of T x T;
- a soft-capped score lies in (-cap, cap), so that its exponential cannot overflow in fp32: the
  softmax needs no pass for the maximum, and its division is left to the (smaller) output;
- the backward pass keeps the capped scores and needs no second tanh.

Shapes as in gemma.py; R = G x T query rows of one kv head.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gemmule.losses.soft_cap import LARGEST_SAFE_LOGIT, fast_tanh
from gemmule.model.attention import AttentionLayer

QUERY_BLOCK = 128  # small enough that a block's scores stay in a core's cache
MAX_UNROLLED_BLOCKS = 8  # bounds the size of the compiled graph


class _CappedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_BKRH: Tensor,
        k_BKSH: Tensor,
        v_BKSH: Tensor,
        allowed_B1TS: Tensor,
        scale: float,
        cap: float | None,
    ) -> Tensor:
        B, K, R, _ = q_BKRH.shape
        T, S = allowed_B1TS.shape[-2:]
        grouped = (B, K, R // T, T, S)
        scores = (q_BKRH @ k_BKSH.transpose(-1, -2)).float() * scale
        if cap is not None:
            scores = fast_tanh(scores / cap) * cap
        scores = scores.view(grouped)
        allowed = allowed_B1TS[:, :, None]
        shift = None
        if cap is None or cap > LARGEST_SAFE_LOGIT:
            shift = scores.masked_fill(~allowed, -torch.inf).amax(-1, keepdim=True)
            shift = shift.clamp(min=torch.finfo(shift.dtype).min)
        weights = _exp(scores, allowed, shift)
        # A row that may see nothing (padding) sums to zero and yields zeros.
        total_BKR1 = weights.sum(-1).view(B, K, R, 1).clamp(min=torch.finfo(torch.float32).tiny)
        out = (weights.view(B, K, R, S).type_as(v_BKSH) @ v_BKSH) / total_BKR1
        out = out.type_as(v_BKSH)
        ctx.save_for_backward(q_BKRH, k_BKSH, v_BKSH, allowed, scores, shift, total_BKR1, out)
        ctx.scale, ctx.cap = scale, cap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, allowed, scores, shift, total, out = ctx.saved_tensors
        B, K, R, _ = q.shape
        S = k.shape[2]
        grad_out = grad_out / total
        weights = _exp(scores, allowed, shift).view(B, K, R, S)
        grad_v = weights.type_as(v).transpose(-1, -2) @ grad_out.type_as(v)
        grad_weights = (grad_out.type_as(v) @ v.transpose(-1, -2)).float()
        delta = (grad_out * out).sum(-1, keepdim=True)
        grad_scores = weights * (grad_weights - delta)
        if ctx.cap is not None:
            grad_scores = grad_scores * (1.0 - (scores.view(B, K, R, S) / ctx.cap).square())
        grad_scores = (grad_scores * ctx.scale).type_as(q)
        grad_q, grad_k = grad_scores @ k, grad_scores.transpose(-1, -2) @ q
        return grad_q, grad_k, grad_v, None, None, None


def _exp(scores: Tensor, allowed: Tensor, shift: Tensor | None) -> Tensor:
    shifted = scores if shift is None else scores - shift
    return torch.where(allowed, shifted.exp(), 0.0)


def _attend(
    q_BTNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    allowed_BTS: Tensor,
    scale: float,
    cap: float | None,
) -> Tensor:
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKRH = q_BTNH.view(B, T, K, N // K, H).permute(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    # The exponential of a capped score does not fit into float16, nor may a sum of values.
    v_BKSH = (v_BSKH.float() if v_BSKH.dtype == torch.float16 else v_BSKH).transpose(1, 2)
    out_BKRH = _CappedAttention.apply(  # type: ignore[no-untyped-call]
        q_BKRH, k_BSKH.transpose(1, 2), v_BKSH, allowed_BTS[:, None], scale, cap
    )
    return out_BKRH.type_as(q_BTNH).view(B, N, T, H).transpose(1, 2)


def _allowed(
    q_index_T: Tensor,
    k_index_S: Tensor,
    q_doc_ids_BT: Tensor | None,
    k_doc_ids_BS: Tensor | None,
    window: int | None,
) -> Tensor:
    distance = (q_index_T[:, None] - k_index_S[None, :])[None]
    allowed = distance >= 0
    if window is not None:
        allowed = allowed & (distance < window)
    if q_doc_ids_BT is not None and k_doc_ids_BS is not None:
        allowed = allowed & (q_doc_ids_BT[:, :, None] == k_doc_ids_BS[:, None, :])
    return allowed


def block_attention(
    layer: AttentionLayer,
    q_BTNH: Tensor,
    k_BTKH: Tensor,
    v_BTKH: Tensor,
    doc_ids_BT: Tensor | None,
) -> Tensor:
    """Backend that attends within the sequence, in blocks."""
    return attend_sequence(
        q_BTNH, k_BTKH, v_BTKH, doc_ids_BT, layer.window, layer.scale, layer.cap
    )  # fmt: skip


def attend_sequence(
    q_BTNH: Tensor,
    k_BTKH: Tensor,
    v_BTKH: Tensor,
    doc_ids_BT: Tensor | None,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Attends within a sequence; arguments and result as of `attention.attend`."""
    if window is not None and q_BTNH.shape[1] > 2 * window:
        return _long_local(q_BTNH, k_BTKH, v_BTKH, doc_ids_BT, window, scale, cap)
    return _causal(q_BTNH, k_BTKH, v_BTKH, doc_ids_BT, window, scale, cap)


def _causal(
    q_BTNH: Tensor,
    k_BTKH: Tensor,
    v_BTKH: Tensor,
    doc_ids_BT: Tensor | None,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    T = q_BTNH.shape[1]
    index_T = torch.arange(T, device=q_BTNH.device)
    block = max(QUERY_BLOCK, math.ceil(T / MAX_UNROLLED_BLOCKS))
    outs = []
    for start in range(0, T, block):
        end = min(start + block, T)
        # Rounded down to whole cache lines; the mask hides the few extra keys.
        first = 0 if window is None else max(0, start - window + 1) // 16 * 16
        q, keys = slice(start, end), slice(first, end)
        q_doc_ids = None if doc_ids_BT is None else doc_ids_BT[:, q]
        k_doc_ids = None if doc_ids_BT is None else doc_ids_BT[:, keys]
        allowed = _allowed(index_T[q], index_T[keys], q_doc_ids, k_doc_ids, window)
        outs.append(_attend(q_BTNH[:, q], k_BTKH[:, keys], v_BTKH[:, keys], allowed, scale, cap))
    return torch.cat(outs, dim=1)


def _long_local(
    q_BTNH: Tensor,
    k_BTKH: Tensor,
    v_BTKH: Tensor,
    doc_ids_BT: Tensor | None,
    window: int,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Blocks of half a window become batch entries; each sees itself and the two before it."""
    B, T, N, H = q_BTNH.shape
    block = math.ceil(window / 2)
    blocks = math.ceil(T / block)
    tail = blocks * block - T
    if doc_ids_BT is None:
        doc_ids_BT = q_BTNH.new_ones((B, T), dtype=torch.long)
    # Doc id -1 marks the places before the start, which no query may see.
    doc_ids = F.pad(doc_ids_BT, (2 * block, tail), value=-1)

    def with_two_before(x: Tensor) -> Tensor:
        parts = x.view(B, blocks + 2, block, *x.shape[2:])
        joined = torch.cat((parts[:, :-2], parts[:, 1:-1], parts[:, 2:]), dim=2)
        return joined.reshape(B * blocks, 3 * block, *x.shape[2:])

    q = F.pad(q_BTNH, (0, 0, 0, 0, 0, tail)).view(B * blocks, block, N, H)
    k = with_two_before(F.pad(k_BTKH, (0, 0, 0, 0, 2 * block, tail)))
    v = with_two_before(F.pad(v_BTKH, (0, 0, 0, 0, 2 * block, tail)))
    index = torch.arange(3 * block, device=q.device)
    q_doc_ids = doc_ids[:, 2 * block :].reshape(B * blocks, block)
    allowed = _allowed(index[2 * block :], index, q_doc_ids, with_two_before(doc_ids), window)
    out = _attend(q, k, v, allowed, scale, cap)
    return out.reshape(B, blocks * block, N, H)[:, :T]
