"""ggml's Q8_0 and Q4_0: blocks of 32 numbers that share a scale.

The gguf package uses one core, and quantizes a few rows at a time. This module does the same
arithmetic on all cores and gives the same bytes (tests/checkpoints/test_gguf.py compares them).
"""

import torch
from torch import Tensor

BLOCK = 32
OURS = ("Q8_0", "Q4_0")  # the types that this module quantizes and dequantizes
_AT_ONCE = 2**20  # numbers: enough for all cores, with temporaries of a few megabytes
# Added before truncation, this rounds halves up and anything just below them down; in fp32 adding
# 0.5 itself would round 0.49999997 up.
_BELOW_HALF = torch.tensor(0.5).nextafter(torch.tensor(0.0))


def quantize(rows: Tensor, kind: str) -> Tensor:
    """Quantizes fp32 values into blocks, uint8 [blocks, bytes of a block].

    Args:
        rows: finite values; their number must be a multiple of BLOCK.
        kind: "Q8_0" or "Q4_0".
    """
    function = {"Q8_0": _q8_0, "Q4_0": _q4_0}[kind]
    return torch.cat([function(part) for part in rows.view(-1, BLOCK).split(_AT_ONCE // BLOCK)])


def dequantize(blocks: Tensor, kind: str) -> Tensor:
    """The values of `blocks` [blocks, bytes of a block], fp32 [blocks, BLOCK]."""
    numbers_of = {"Q8_0": _int8, "Q4_0": _int4}[kind]
    out = torch.empty(len(blocks), BLOCK)
    at_once = _AT_ONCE // BLOCK
    for part, filled in zip(blocks.split(at_once), out.split(at_once), strict=True):
        torch.mul(numbers_of(part[:, 2:]), scales(part).float(), out=filled)
    return out


def _int8(packed_NB: Tensor) -> Tensor:
    return packed_NB.view(torch.int8)


def _int4(packed_NB: Tensor) -> Tensor:
    return torch.cat((packed_NB & 15, packed_NB >> 4), 1).view(torch.int8) - 8


def scales(blocks: Tensor) -> Tensor:
    """The scale of each block; infinite if it is too large for float16."""
    return blocks[:, :2].contiguous().view(torch.float16)


def _q8_0(x_NB: Tensor) -> Tensor:
    """A float16 scale, then 32 int8: x / scale, halves rounded away from zero."""
    largest, smallest = x_NB.amax(1, keepdim=True), x_NB.amin(1, keepdim=True)
    scale_N1 = torch.maximum(largest, -smallest).abs() / 127
    scaled = x_NB * _inverse(scale_N1)
    numbers = scaled.add_(torch.copysign(_BELOW_HALF, scaled)).to(torch.int8)
    return torch.cat((scale_N1.half().view(torch.uint8), numbers.view(torch.uint8)), 1)


def _q4_0(x_NB: Tensor) -> Tensor:
    """A float16 scale, then 16 bytes with two numbers each: x / scale + 8.

    The number farthest from zero (the first of several) becomes -8, so the scale can be negative. A
    byte holds a number of the block's first half in its low bits and one of the second half above.
    """
    largest, smallest = x_NB.amax(1, keepdim=True), x_NB.amin(1, keepdim=True)
    farthest = torch.where(largest > -smallest, largest, smallest)
    tied = (largest == -smallest)[:, 0].nonzero()[:, 0]
    rows = x_NB[tied]
    farthest[tied] = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    scale_N1 = farthest / -8
    shifted = (x_NB * _inverse(scale_N1)).add_(8.5)
    numbers = shifted.clamp_(max=15).to(torch.uint8)
    low, high = numbers.chunk(2, 1)
    return torch.cat((scale_N1.half().view(torch.uint8), low | high << 4), 1)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale, or 0 where that is not finite: such a block consists of zeros."""
    inverse = 1 / scale
    return torch.where(inverse.isfinite(), inverse, 0.0)
