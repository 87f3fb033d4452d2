"""Four bits per weight, one scale per superblock and one multiplier per group of it.

    w[n, k] ~ scale[n, k // 256] * mult[n, k // 32] * q[n, k]

q is in -8..7, mult is in 0..15 and scale is a bf16 number: 4 + 4/32 + 16/256 = 4.1875 bits per
weight. The multiplier gives each group of 32 its own step at a quarter of the cost of its own
scale. mult * q fits in a byte, so the products of a superblock add up to one exact integer, the
same in any order of summation.

A tile (16 rows) holds its superblocks one after another. The bytes of a superblock with G groups
(8, except that the last superblock of a row may have 2, 4 or 6):

    256 * G bytes   quants: for each group, for i in 0..3: 16 rows x 4 bytes; byte c of row r holds
                    column 4i + c of the group in its low half and 4(i + 4) + c in its high half,
                    each with 8 added
    64 bytes        multipliers: for each row a little-endian uint32, whose four bits j are the
                    multiplier of group PERM[j]; 0 if there is no such group
    32 bytes        scales: 16 x bf16, little-endian

Shapes: N rows, K columns, S superblocks of a row, R rows of a chunk, T tiles, G groups of a
superblock.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.errors import CheckpointError
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

LOWEST, HIGHEST = -8, 7  # range of q
MAX_MULTIPLIER = 15
PERM = (0, 2, 4, 6, 1, 3, 5, 7)
GROUPS = SUPERBLOCK // GROUP
_CHUNK = 2**17  # weights converted at once: the intermediate results stay in the cache
# Candidates for the largest weight of a group over its step. Beyond 8 the largest are clipped.
_REACHES = (6.6, 7.0, 7.3, 7.6, 7.9, 8.3, 8.8, 9.5, 10.5, 12.0)
# Candidates for the largest step of a superblock over its scale; 15 has the finest multipliers.
_TOPS = tuple(7.0 + i / 8 for i in range(68))
_FINALISTS = 2  # scales of a superblock whose true errors are compared


@dataclass(frozen=True, eq=False)
class Scales:
    """The scales and multipliers of a matrix.

    Attributes:
        scale_NS: the scale of each superblock, fp32 numbers that bf16 can hold.
        mult_NSG: the multiplier of each group, fp32 integers 0..15.
    """

    scale_NS: Tensor
    mult_NSG: Tensor

    @property
    def step_NSG(self) -> Tensor:
        """The step of each group, scale times multiplier; exact."""
        return self.scale_NS[..., None] * self.mult_NSG


def quantize(weight_NK: Tensor, importance_K: Tensor | None = None) -> Tensor:
    """Packs a matrix with the scales and multipliers that a search finds best.

    Args:
        weight_NK: floats; converted a few rows at a time.
        importance_K: the weight of each column's squared errors, such as the mean square of that
            input; None: all equal.

    Returns:
        The tiles, uint8 [T, bytes].

    Raises:
        CheckpointError: for NaN or Inf.
    """
    N, K = weight_NK.shape
    data = torch.empty(tensor_specs("int4", N, K)[0][0], dtype=torch.uint8)
    step = rows_at_once(K)
    for first in range(0, N, step):
        chunk_RK = weight_NK[first : first + step].float()
        scales = choose_scales(chunk_RK, importance_K)
        q_RK = nearest(chunk_RK, scales)
        tiles = slice(first // TILE, padded(first + len(chunk_RK), TILE) // TILE)
        pack_into(data[tiles], q_RK, scales, K)
    return data


def rows_at_once(columns: int) -> int:
    """The number of rows in a chunk, a multiple of TILE."""
    return max(TILE, _CHUNK // padded(columns, SUPERBLOCK) // TILE * TILE)


def grouped(x_RK: Tensor) -> Tensor:
    """Rows as superblocks and groups, [R, S, G, 32], padded with zeros."""
    K = x_RK.shape[-1]
    x_RK = F.pad(x_RK, (0, padded(K, SUPERBLOCK) - K))
    return x_RK.unflatten(-1, (-1, GROUPS, GROUP))


def choose_scales(weight_RK: Tensor, importance_K: Tensor | None = None) -> Scales:
    """Searches for the scales and multipliers with the least weighted squared error.

    The search first finds the best step of each group alone, then the scales whose multiples come
    closest to these steps. It compares the true errors of the best few, with neighboring
    multipliers, and finally fits the scale to the chosen integers.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    w = grouped(weight_RK)
    largest = largest_of(w)
    # The integers reach one step further below zero; the sign of a scale decides which side that
    # is.
    above = w.amax(-1) >= -w.amin(-1)
    sign = torch.where((largest * (above * 2 - 1)).sum(-1) > 0, -1.0, 1.0)
    h = None if importance_K is None else grouped(importance_K.float()[None])
    search = Search(w, h, LOWEST, HIGHEST)
    step, weight = _own_steps(search, largest, sign)
    scale, mult = _finalists(search, step, weight, sign)
    return Scales(*_refined(search, scale, mult))


def largest_of(w: Tensor) -> Tensor:
    """The largest absolute value along the last dimension.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    largest = w.abs().amax(-1)
    if not bool(largest.isfinite().all()):
        raise CheckpointError("cannot quantize a matrix that holds NaN or Inf")
    return largest


class Search:
    """Computes the weighted squared error of each group for given steps; reuses its buffers.

    Args:
        w: weights, with a group along the last dimension.
        h: the weight of each squared error; None: all equal.
        lowest: smallest integer.
        highest: largest integer.
    """

    def __init__(self, w: Tensor, h: Tensor | None, lowest: int, highest: int) -> None:
        self.w, self.h, self.lowest, self.highest = w, h, lowest, highest
        self.q, self.off = torch.empty_like(w), torch.empty_like(w)

    def error(self, step: Tensor) -> Tensor:
        """The error of each group; leaves the integers in `q`."""
        torch.mul(self.w, inverse(step)[..., None], out=self.q)
        self.q.round_().clamp_(self.lowest, self.highest)
        torch.mul(self.q, step[..., None], out=self.off)
        self.off.sub_(self.w).square_()
        if self.h is not None:
            self.off.mul_(self.h)
        return self.off.sum(-1)

    def fit(self) -> tuple[Tensor, Tensor]:
        """The sums of h w q and of h q q over each group, for the integers in `q`."""
        hq = torch.mul(self.q, self.h, out=self.off) if self.h is not None else self.q
        hqq = (hq * self.q).sum(-1)
        return (hq * self.w).sum(-1), hqq


def inverse(step: Tensor) -> Tensor:
    """1 / step, or 0 where that is not finite: a group with step 0 is all zeros."""
    inverse = step.reciprocal()
    return torch.where(inverse.isfinite(), inverse, 0.0)


def _own_steps(search: Search, largest: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """The best step of each group alone, and the curvature of its error around that step."""
    best_error = torch.full_like(largest, torch.inf)
    best_step = torch.zeros_like(largest)
    signed = largest * sign[..., None]
    for reach in _REACHES:
        step = signed / reach
        error = search.error(step)
        torch.where(error < best_error, step, best_step, out=best_step)
        torch.minimum(error, best_error, out=best_error)
    search.error(best_step)
    hwq, hqq = search.fit()
    fitted = torch.where(hqq > 0, hwq / hqq, best_step)
    return fitted, hqq


def _finalists(search: Search, step: Tensor, weight: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """The best scale of each superblock, and its multipliers."""
    size = step * sign[..., None]  # positive, except for odd groups that fit nothing
    top = size.amax(-1)
    costs = []
    for reach in _TOPS:
        scale = top[..., None] / reach
        mult = (size * inverse(scale)).round_().clamp_(0, MAX_MULTIPLIER)
        costs.append((mult.mul_(scale).sub_(size).square_().mul_(weight)).sum(-1))
    chosen = torch.stack(costs, -1).topk(_FINALISTS, largest=False).indices
    reaches = torch.tensor(_TOPS)
    best = torch.full_like(top, torch.inf)
    best_scale, best_mult = torch.zeros_like(top), torch.zeros_like(size)
    for i in range(_FINALISTS):
        scale = bf16(top / reaches[chosen[..., i]] * sign)
        error, mult = _best_multipliers(search, scale, size * sign[..., None])
        total = error.sum(-1)
        better = total < best
        best = torch.where(better, total, best)
        best_scale = torch.where(better, scale, best_scale)
        best_mult = torch.where(better[..., None], mult, best_mult)
    return best_scale, best_mult


def _best_multipliers(search: Search, scale: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The least error of each group, and its multiplier: the nearest one or a neighbor of it."""
    near = (step * inverse(scale)[..., None]).round_().clamp_(0, MAX_MULTIPLIER)
    best_error = torch.full_like(step, torch.inf)
    best_mult = torch.zeros_like(step)
    for offset in (0, -1, 1):
        mult = (near + offset).clamp_(0, MAX_MULTIPLIER)
        error = search.error(scale[..., None] * mult)
        best_mult = torch.where(error < best_error, mult, best_mult)
        best_error = torch.minimum(error, best_error)
    return best_error, best_mult


def _refined(search: Search, scale: Tensor, mult: Tensor) -> tuple[Tensor, Tensor]:
    """The scale fitted to the integers where that lowers the error, and the multipliers."""
    before = search.error(scale[..., None] * mult).sum(-1)
    hwq, hqq = search.fit()
    above, below = (hwq * mult).sum(-1), (hqq * mult.square()).sum(-1)
    fitted = bf16(torch.where(below > 0, above / below, scale))
    after = search.error(fitted[..., None] * mult).sum(-1)
    scale = torch.where(after < before, fitted, scale)
    # Rows of zeros, and weights too small for any step, become exactly zero.
    return scale, torch.where((scale == 0)[..., None], 0.0, mult)


def bf16(x: Tensor) -> Tensor:
    """Rounds to a scale that can be stored; NaN and infinities become 0."""
    return x.bfloat16().float().nan_to_num_(0.0, 0.0, 0.0)


def nearest(weight_RK: Tensor, scales: Scales) -> Tensor:
    """The integers nearest to the weights, fp32 [R, S * 256]."""
    q = grouped(weight_RK) * inverse(scales.step_NSG)[..., None]
    return q.round_().clamp_(LOWEST, HIGHEST).flatten(1)


def pack_into(data_TB: Tensor, q_RK: Tensor, scales: Scales, columns: int) -> None:
    """Packs rows into their tiles.

    Args:
        data_TB: the bytes of the tiles; overwritten.
        q_RK: integers -8..7, K padded to whole superblocks; the last tile may be partly empty.
        scales: the scales and multipliers of these rows.
        columns: K of the matrix, without padding.
    """
    T, missing = len(data_TB), len(data_TB) * TILE - len(q_RK)
    quants = pack_nibbles(unsigned(q_RK, T, LOWEST))
    mult = F.pad(scales.mult_NSG, (0, 0, 0, 0, 0, missing)).to(torch.uint8)[..., list(PERM)]
    mults = (mult[..., 0::2] | (mult[..., 1::2] << 4)).view(T, TILE, -1, 4).transpose(1, 2)
    scale_bytes = pack_scales(scales.scale_NS, T)
    at = 0
    for s, width in enumerate(superblocks(columns)):
        for part in (quants[:, s, : width // GROUP], mults[:, s], scale_bytes[:, s]):
            flat = part.flatten(1)
            data_TB[:, at : at + flat.shape[1]] = flat
            at += flat.shape[1]
    assert at == data_TB.shape[1]


def unsigned(q_RK: Tensor, tiles: int, lowest: int) -> Tensor:
    """Integers minus the lowest one, uint8 [T, 16, S, G, 32]; rows padded to whole tiles."""
    q_RK = F.pad(q_RK, (0, 0, 0, tiles * TILE - len(q_RK))) - lowest
    return q_RK.to(torch.uint8).view(tiles, TILE, -1, GROUPS, GROUP)


def pack_nibbles(u: Tensor) -> Tensor:
    """Packs four-bit numbers [T, 16, S, G, 32] in pairs: bytes [T, S, G, 4, 16, 4]."""
    halves = u.unflatten(-1, (2, 4, 4))
    return (halves[..., 0, :, :] | (halves[..., 1, :, :] << 4)).permute(0, 2, 3, 4, 1, 5)


def unpack_nibbles(bytes_TGB: Tensor) -> Tensor:
    """Unpacks the nibbles of one superblock: [T, G, 256] to [T, 16, G, 32]."""
    quants = bytes_TGB.unflatten(-1, (4, TILE, 4)).permute(0, 3, 1, 2, 4)
    return torch.stack((quants & 15, quants >> 4), 3).flatten(3)


def pack_scales(scale_RS: Tensor, tiles: int) -> Tensor:
    """Packs scales [R, S] as bytes [T, S, 32]."""
    scale = F.pad(scale_RS, (0, 0, 0, tiles * TILE - len(scale_RS))).bfloat16()
    return scale.view(tiles, TILE, -1).transpose(1, 2).contiguous().view(torch.uint8)


def unpack_scales(bytes_TB: Tensor) -> Tensor:
    """Unpacks the scales of one superblock: [T, 32] to fp32 [T, 16]."""
    return bytes_TB.contiguous().view(torch.bfloat16).float()


def unpack(data_TB: Tensor, columns: int) -> tuple[Tensor, Scales]:
    """Reverses `pack_into`: the integers, int8 [T * 16, S * 256], and their scales."""
    widths, T = superblocks(columns), len(data_TB)
    q = torch.zeros(T, TILE, len(widths), GROUPS, GROUP, dtype=torch.int8)
    mult = torch.zeros(T, TILE, len(widths), GROUPS)
    scale = torch.zeros(T, TILE, len(widths))
    at = 0
    for s, width in enumerate(widths):
        groups, size = width // GROUP, width // 2 * TILE
        end = at + superblock_bytes("int4", width)
        quants = unpack_nibbles(data_TB[:, at : at + size].unflatten(1, (groups, -1)))
        q[:, :, s, :groups] = quants.to(torch.int8) + LOWEST
        mults = data_TB[:, at + size : end - SCALE_BYTES].view(T, TILE, 4)
        for j, group in enumerate(PERM):
            mult[:, :, s, group] = ((mults[:, :, j // 2] >> (4 * (j % 2))) & 15).float()
        scale[:, :, s] = unpack_scales(data_TB[:, end - SCALE_BYTES : end])
        at = end
    return q.view(T * TILE, -1), Scales(scale.flatten(0, 1), mult.flatten(0, 1))


def dequantize(data_TB: Tensor, columns: int) -> Tensor:
    """The values of tiles, fp32 [T * 16, K]; exact."""
    q, scales = unpack(data_TB, columns)
    w = q.float().view(len(q), -1, GROUPS, GROUP) * scales.step_NSG[..., None]
    return w.flatten(1)[:, :columns]
