"""Batch-invariant arithmetic in torch: a result has the same bits whatever else is in the batch.

A row of a matrix product does not depend on the other rows once there are enough of them, and
attention sums over its keys in blocks that are counted from the beginning of a sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gemmule.losses.soft_cap import soft_cap
from gemmule.model.attention import AttentionLayer

BLOCK = 64  # keys that a weighted sum takes at once
QUERY_ROWS = 16  # minimum number of query rows in a product of attention
_ROWS = 128  # for each thread; see padding_rows


def padding_rows(rows: int) -> int:
    """Returns how many rows to add to a matrix, so that no row depends on how many there are.

    Matrix libraries split the sums of a product with few rows differently than with many, and an
    elementwise function (gelu, rsqrt) may compute the last few elements of a thread's share in
    another way; a share of a whole number of blocks has no such remainder.
    """
    return -rows % (_ROWS * torch.get_num_threads())


@dataclass(frozen=True)
class Keys:
    """Keys and values to attend to; P rows, one for each row of queries or one for all.

    Attributes:
        k_PSKH: keys, a whole number of blocks.
        v_PSKH: values.
        positions_PS: positions of the keys in their sequence.
        valid_PS: which keys are not padding.
    """

    k_PSKH: Tensor
    v_PSKH: Tensor
    positions_PS: Tensor
    valid_PS: Tensor


def attend_in_blocks(
    layer: AttentionLayer, q_BTNH: Tensor, positions_BT: Tensor, parts: Sequence[Keys]
) -> Tensor:
    """Computes causal, windowed, soft-capped attention, summed block by block.

    The plain version is `attention.attend`.

    Args:
        layer: window, scale and cap.
        q_BTNH: rotated queries.
        positions_BT: positions of the queries in their sequence.
        parts: keys and values, from the beginning of the sequence on.

    Returns:
        [B, T, N, H] in fp32; zeros for a query that sees no key.
    """
    B, length, N, H = q_BTNH.shape
    T = max(length, QUERY_ROWS)
    q_BTNH = functional.pad(q_BTNH, (0, 0, 0, 0, 0, T - length))
    positions_BT = functional.pad(positions_BT, (0, T - length))
    K = parts[0].k_PSKH.shape[2]
    q_BKRH = q_BTNH.view(B, T, K, N // K, H).permute(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    visible = []
    for part in parts:
        distance = positions_BT[:, :, None] - part.positions_PS[:, None]
        allowed_BTS = (distance >= 0) & part.valid_PS[:, None]
        blocks = slice(None)
        if layer.window is not None:
            allowed_BTS &= distance < layer.window
            needed = allowed_BTS.view(B, T, -1, BLOCK).any(-1).flatten(0, 1).any(0).nonzero()
            if not len(needed):
                continue
            blocks = slice(int(needed[0]) * BLOCK, (int(needed[-1]) + 1) * BLOCK)
        k_PKHS = part.k_PSKH[:, blocks].permute(0, 2, 3, 1)
        scores = soft_cap(_product(q_BKRH, k_PKHS).float() * layer.scale, layer.cap)
        scores = scores.view(B, K, N // K, T, -1)
        scores = scores.masked_fill_(~allowed_BTS[:, None, None, :, blocks], -torch.inf)
        values = part.v_PSKH[:, blocks].transpose(1, 2)
        visible.append((scores.view(B, K, N // K * T, -1), values))
    highest = torch.stack([scores.amax(-1) for scores, _ in visible]).amax(0)[..., None]
    highest = highest.clamp(min=torch.finfo(torch.float32).min)  # padding sees no key
    total = torch.zeros_like(highest)
    out = torch.zeros(B, K, N // K * T, H, device=q_BTNH.device)
    for scores, v_PKSH in visible:
        weights = (scores - highest).exp_()
        for at in range(0, weights.shape[-1], BLOCK):
            block = weights[..., at : at + BLOCK]
            total += block.sum(-1, keepdim=True)
            out += _product(block.to(v_PKSH.dtype), v_PKSH[:, :, at : at + BLOCK]).float()
    out /= total.clamp(min=torch.finfo(torch.float32).tiny)
    out_BTNH = out.view(B, K, N // K, T, H).permute(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return out_BTNH[:, :length]


def _product(a_BKRX: Tensor, b_PKXY: Tensor) -> Tensor:
    """A @ b, where b may be one for all rows (P = 1) and is then not copied for each."""
    if len(b_PKXY) == len(a_BKRX):
        return a_BKRX @ b_PKXY
    B, K, R, X = a_BKRX.shape
    out_KBRY = (a_BKRX.transpose(0, 1).reshape(K, B * R, X) @ b_PKXY[0]).view(K, B, R, -1)
    return out_KBRY.transpose(0, 1).contiguous()
