"""Arithmetic whose results depend on their own inputs alone, to the last bit, in any company.

A row of a matrix product does not depend on the other rows once there are enough of them, and
attention adds up its keys in blocks that are counted from where a text begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gemmule.losses.soft_cap import soft_cap
from gemmule.model.gemma import Attention

BLOCK = 64  # keys whose share of a weighted sum is computed at once
QUERY_ROWS = 16  # the least that a small product of attention is given
_ROWS = 128  # for each thread; see spare_rows


def spare_rows(rows: int) -> int:
    """Rows to add to a matrix, so that each comes out alike in any company.

    Matrix libraries split the sums of a product with few rows otherwise than with many, and a
    function of single numbers (gelu, rsqrt) may treat the last few of a thread's share in another
    way: a whole number of shares has no such end.
    """
    return -rows % (_ROWS * torch.get_num_threads())


@dataclass(frozen=True)
class Keys:
    """What queries may attend to; P rows, one for each of the queries' or one for all.

    Attributes:
        k_PSKH: keys, a whole number of blocks of them.
        v_PSKH: values.
        positions_PS: where each stands in its text.
        there_PS: which are no padding.
    """

    k_PSKH: Tensor
    v_PSKH: Tensor
    positions_PS: Tensor
    there_PS: Tensor


def attend_to_parts(
    attention: Attention, q_BTNH: Tensor, positions_BT: Tensor, parts: Sequence[Keys]
) -> Tensor:
    """Causal, windowed, soft-capped attention, added up block by block.

    The plain version is `gemma.attend`.

    Args:
        attention: whose window, scale and cap.
        q_BTNH: rotated queries.
        positions_BT: where each stands in its text.
        parts: keys and values, from the text's beginning on.

    Returns:
        [B, T, N, H] in fp32; zeros for a query that may see nothing.
    """
    B, length, N, H = q_BTNH.shape
    T = max(length, QUERY_ROWS)
    q_BTNH = functional.pad(q_BTNH, (0, 0, 0, 0, 0, T - length))
    positions_BT = functional.pad(positions_BT, (0, T - length))
    K = parts[0].k_PSKH.shape[2]
    q_BKRH = q_BTNH.view(B, T, K, N // K, H).permute(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    seen = []
    for part in parts:
        distance = positions_BT[:, :, None] - part.positions_PS[:, None]
        allowed_BTS = (distance >= 0) & part.there_PS[:, None]
        blocks = slice(None)
        if attention.window is not None:
            allowed_BTS &= distance < attention.window
            some = allowed_BTS.view(B, T, -1, BLOCK).any(-1).flatten(0, 1).any(0).nonzero()
            if not len(some):
                continue
            blocks = slice(int(some[0]) * BLOCK, (int(some[-1]) + 1) * BLOCK)
        k_PKHS = part.k_PSKH[:, blocks].permute(0, 2, 3, 1)
        scores = soft_cap(_product(q_BKRH, k_PKHS).float() * attention.scale, attention.cap)
        scores = scores.view(B, K, N // K, T, -1)
        scores = scores.masked_fill_(~allowed_BTS[:, None, None, :, blocks], -torch.inf)
        values = part.v_PSKH[:, blocks].transpose(1, 2)
        seen.append((scores.view(B, K, N // K * T, -1), values))
    highest = torch.stack([scores.amax(-1) for scores, _ in seen]).amax(0)[..., None]
    highest = highest.clamp(min=torch.finfo(torch.float32).min)  # padding sees nothing at all
    total = torch.zeros_like(highest)
    out = torch.zeros(B, K, N // K * T, H, device=q_BTNH.device)
    for scores, v_PKSH in seen:
        weights = (scores - highest).exp_()
        for at in range(0, weights.shape[-1], BLOCK):
            block = weights[..., at : at + BLOCK]
            total += block.sum(-1, keepdim=True)
            out += _product(block.to(v_PKSH.dtype), v_PKSH[:, :, at : at + BLOCK]).float()
    out /= total.clamp(min=torch.finfo(torch.float32).tiny)
    out_BTNH = out.view(B, K, N // K, T, H).permute(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return out_BTNH[:, :length]


def _product(a_BKRX: Tensor, b_PKXY: Tensor) -> Tensor:
    """A @ b, where b may be one for all (P = 1): then it is not copied for each."""
    if len(b_PKXY) == len(a_BKRX):
        return a_BKRX @ b_PKXY
    B, K, R, X = a_BKRX.shape
    out_KBRY = (a_BKRX.transpose(0, 1).reshape(K, B * R, X) @ b_PKXY[0]).view(K, B, R, -1)
    return out_KBRY.transpose(0, 1).contiguous()
