"""Reference product of activations with a packed matrix: every kernel must equal it bit for bit.

Each token's activations are quantized to int8, with one scale per superblock of 256 inputs, so that
the largest becomes 127. Their products with the integers of the weights add up to one exact
integer, whose unit is `weight scale x token scale`. Over the superblocks of a row, in order,
acc = fma(integer, weight scale * token scale, acc), all in fp32.

Shapes: M tokens, N outputs, K inputs, S superblocks, C columns of a superblock, T tiles.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.quant import int4, int6, int8
from gemmule.quant.layout import FLOATS, SUPERBLOCK, TILE, padded
from gemmule.quant.packed import PackedMatrix

_TILES = 256  # tiles unpacked at once


def quantize_tokens(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes activations per superblock: integers, fp32 [M, S, 256], and scales, fp32 [M, S]."""
    K = x_MK.shape[1]
    x = F.pad(x_MK.float(), (0, padded(K, SUPERBLOCK) - K)).unflatten(1, (-1, SUPERBLOCK))
    largest_MS = x.abs().amax(-1)
    # Tensor over tensor: torch divides a number by a tensor with a rounded reciprocal.
    factor_MS = torch.full_like(largest_MS, int8.LARGEST) / largest_MS
    factor_MS = torch.where(factor_MS.isfinite(), factor_MS, 0.0)
    return (x * factor_MS[..., None]).round_(), largest_MS / int8.LARGEST


def linear(packed: PackedMatrix, x_MK: Tensor) -> Tensor:
    """The product x W^T, fp32 [M, N]."""
    if packed.format in FLOATS:
        return F.linear(x_MK.to(packed.data.dtype), packed.data).float()
    x_MSC, token_scale_MS = quantize_tokens(x_MK)
    parts = [
        _tiles(packed, first, x_MSC, token_scale_MS) for first in range(0, len(packed.data), _TILES)
    ]
    return torch.cat(parts, 1)[:, : packed.rows]


def _tiles(packed: PackedMatrix, first: int, x_MSC: Tensor, token_scale_MS: Tensor) -> Tensor:
    data_TB = packed.data[first : first + _TILES]
    S = x_MSC.shape[1]
    if packed.format == "int4":
        q, scales = int4.unpack(data_TB, packed.columns)
        w = q.float().view(len(q), S, int4.GROUPS, -1) * scales.mult_NSG[..., None]
        w_NSC, scale_NS = w.flatten(2), scales.scale_NS
    elif packed.format == "int6":
        q, scale_NS = int6.unpack(data_TB, packed.columns)
        w_NSC = q.float().view(len(q), S, -1)
    else:
        assert packed.scales is not None
        q = int8.unpack(data_TB)
        w_NSC = F.pad(q, (0, S * SUPERBLOCK - q.shape[1])).float().view(len(q), S, -1)
        scale_N = packed.scales[first * TILE : first * TILE + len(q)]
        scale_NS = scale_N[:, None].expand(-1, S)
    acc_MN = torch.zeros(len(x_MSC), len(w_NSC))
    for s in range(S):
        # Integers and their partial sums stay below 2^24: exact in fp32.
        sums_MN = x_MSC[:, s] @ w_NSC[:, s].T
        acc_MN = fma(sums_MN, token_scale_MS[:, s, None] * scale_NS[None, :, s], acc_MN)
    return acc_MN


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Fused multiply-add: a b + c of fp32 numbers, rounded once.

    In fp64 the product is exact but the sum is rounded. Rounding it again to fp32 could differ from
    rounding once if the sum lies halfway between two fp32 numbers. So the sum is rounded to odd:
    its last bit records whether anything was lost (Boldo and Melquiond, 2008).
    """
    product, c = a.double() * b.double(), c.double()
    total = product + c
    shadow = total - product
    lost = (product - (total - shadow)) + (c - shadow)
    bits = total.view(torch.int64)
    even = (bits & 1) == 0
    outwards = torch.where((lost > 0) == (total > 0), 1, -1)
    return torch.where((lost != 0) & even, bits + outwards, bits).view(torch.float64).float()
