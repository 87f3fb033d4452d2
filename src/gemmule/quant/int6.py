"""Six bits per weight and one scale per superblock: for an output head that needs more than int4.

    w[n, k] ~ scale[n, k // 256] * q[n, k]

q is in -32..31 and scale is a bf16 number: 6 + 16/256 = 6.0625 bits per weight. The products of a
superblock add up to one exact integer, as in int4.

A tile (16 rows) holds its superblocks one after another. The bytes of a superblock with G groups of
32 (8, except that the last superblock of a row may have 2, 4 or 6), with u = q + 32:

    384 bytes per group   256 bytes like the quants of int4, for the four low bits of u; then for j
                          in 0..1: 16 rows x 4 bytes; byte c of row r holds, from bit 2t on, t in
                          0..3, the two high bits of column 4(4j + t) + c
    32 bytes              scales: 16 x bf16, little-endian

Shapes: N rows, K columns, S superblocks of a row, R rows of a chunk, T tiles, G groups of a
superblock.
"""

import torch
from torch import Tensor

from gemmule.quant.int4 import (
    GROUPS,
    Search,
    bf16,
    grouped,
    inverse,
    largest_of,
    pack_nibbles,
    pack_scales,
    rows_at_once,
    unpack_nibbles,
    unpack_scales,
    unsigned,
)
from gemmule.quant.layout import (
    GROUP,
    SCALE_BYTES,
    SUPERBLOCK,
    TILE,
    padded,
    superblock_bytes,
    superblocks,
    tensor_specs,
)

LOWEST, HIGHEST = -32, 31  # range of q
_NIBBLES, _GROUP_BYTES = GROUP * TILE // 2, GROUP * TILE * 6 // 8
# Candidates for the largest weight of a superblock over its scale. Beyond 32 the largest are
# clipped.
_REACHES = (32.0, 31.0, 31.5, 30.0, 30.5, 29.0, 29.5, 28.0, 32.4, 33.0, 33.5, 34.0, 35.0, 37.0)


def quantize(weight_NK: Tensor) -> Tensor:
    """Packs a matrix with the scales that a search finds best.

    Args:
        weight_NK: floats; converted a few rows at a time.

    Returns:
        The tiles, uint8 [T, bytes].

    Raises:
        CheckpointError: for NaN or Inf.
    """
    N, K = weight_NK.shape
    data = torch.empty(tensor_specs("int6", N, K)[0][0], dtype=torch.uint8)
    step = rows_at_once(K)
    for first in range(0, N, step):
        chunk_RK = weight_NK[first : first + step].float()
        q_RK, scale_RS = _rounded(chunk_RK)
        tiles = slice(first // TILE, padded(first + len(chunk_RK), TILE) // TILE)
        pack_into(data[tiles], q_RK, scale_RS, K)
    return data


def _rounded(weight_RK: Tensor) -> tuple[Tensor, Tensor]:
    """The integers [R, S * 256], and the scales with the least squared error of those tried."""
    w = grouped(weight_RK).flatten(-2)
    largest = largest_of(w)
    # The integers reach one step further below zero: the largest weight goes to that side.
    signed = torch.where(w.amax(-1) == largest, -largest, largest)
    search = Search(w, None, LOWEST, HIGHEST)
    scale = bf16(signed / _REACHES[0])
    best = search.error(scale)
    for reach in _REACHES[1:]:
        scale, best = _better(search, bf16(signed / reach), scale, best)
    search.error(scale)
    wq, qq = search.fit()
    fitted = bf16(torch.where(qq > 0, wq / qq, scale))
    scale, _ = _better(search, fitted, scale, best)
    q = (w * inverse(scale)[..., None]).round_().clamp_(LOWEST, HIGHEST)
    # Weights too small for any step become exactly zero.
    return q.flatten(1), torch.where(q.any(-1), scale, 0.0)


def _better(search: Search, scale: Tensor, before: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """The better of two scales for each superblock, and its error; `best` is that of `before`."""
    error = search.error(scale)
    return torch.where(error < best, scale, before), torch.minimum(error, best)


def pack_into(data_TB: Tensor, q_RK: Tensor, scale_RS: Tensor, columns: int) -> None:
    """Packs rows into their tiles.

    Args:
        data_TB: the bytes of the tiles; overwritten.
        q_RK: integers -32..31, K padded to whole superblocks; the last tile may be partly empty.
        scale_RS: the scale of each superblock, numbers that bf16 can hold.
        columns: K of the matrix, without padding.
    """
    u = unsigned(q_RK, len(data_TB), LOWEST)
    low = pack_nibbles(u & 15).flatten(3)
    pairs = (u >> 4).unflatten(-1, (2, 4, 4))  # [T, 16, S, G, j, t, c]
    high = pairs[..., 0, :]
    for t in range(1, 4):
        high = high | (pairs[..., t, :] << 2 * t)
    groups = torch.cat((low, high.permute(0, 2, 3, 4, 1, 5).flatten(3)), -1)  # [T, S, G, 384]
    scales, at = pack_scales(scale_RS, len(data_TB)), 0
    for s, width in enumerate(superblocks(columns)):
        end = at + superblock_bytes("int6", width)
        data_TB[:, at : end - SCALE_BYTES] = groups[:, s, : width // GROUP].flatten(1)
        data_TB[:, end - SCALE_BYTES : end] = scales[:, s]
        at = end
    assert at == data_TB.shape[1]


def unpack(data_TB: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Reverses `pack_into`: integers, int8 [T * 16, S * 256], and scales, fp32 [T * 16, S]."""
    widths, T = superblocks(columns), len(data_TB)
    q = torch.zeros(T, TILE, len(widths), GROUPS, GROUP, dtype=torch.int8)
    scale = torch.zeros(T, TILE, len(widths))
    at = 0
    for s, width in enumerate(widths):
        end = at + superblock_bytes("int6", width)
        groups = data_TB[:, at : end - SCALE_BYTES].unflatten(1, (-1, _GROUP_BYTES))
        pairs = groups[..., _NIBBLES:].unflatten(-1, (2, TILE, 4)).permute(0, 3, 1, 2, 4)
        high = torch.stack([(pairs >> 2 * t) & 3 for t in range(4)], 4).flatten(3)
        u = unpack_nibbles(groups[..., :_NIBBLES]) | (high << 4)
        q[:, :, s, : width // GROUP] = u.to(torch.int8) + LOWEST
        scale[:, :, s] = unpack_scales(data_TB[:, end - SCALE_BYTES : end])
        at = end
    return q.view(T * TILE, -1), scale.flatten(0, 1)


def dequantize(data_TB: Tensor, columns: int) -> Tensor:
    """The values of tiles, fp32 [T * 16, K]; exact."""
    q, scale_NS = unpack(data_TB, columns)
    w = q.float().unflatten(1, (-1, SUPERBLOCK)) * scale_NS[..., None]
    return w.flatten(1)[:, :columns]
