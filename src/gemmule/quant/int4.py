"""Four bits a weight, with a scale of a superblock and a multiplier of each group in it.

    w[n, k] ~ scale[n, k // 256] * mult[n, k // 32] * q[n, k]

q is in -8..7, mult in 0..15 and scale a bf16 number: 4 + 4/32 + 16/256 = 4.1875 bits a weight. The
multiplier lets each group of 32 have a step of its own at a quarter of what a scale of its own
costs. mult * q fits in a byte, so that a superblock's products add up to one exact integer:
whatever computes it, in whatever order, gets the same.

Bytes of a tile (16 rows): its superblocks one after the other; one of G groups (8; in the last
one of a row 2, 4 or 6 where it is shorter):

    256 * G bytes   quants: for each group, for i in 0..3: 16 rows x 4 bytes; byte c of row r holds
                    column 4i + c of the group in its low half, 4(i + 4) + c in its high one, + 8
    64 bytes        multipliers: of each row a little-endian uint32, whose four bits j are the
                    multiplier of group PERM[j]; 0 where there is no such group
    32 bytes        scales: 16 x bf16, little-endian

Shapes: N rows, K columns, S superblocks, R rows of a chunk, T tiles, G groups of a superblock.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.errors import CheckpointError
from gemmule.quant.packed import (
    GROUP,
    SCALES,
    SUPERBLOCK,
    TILE,
    PackedMatrix,
    layout,
    padded,
    superblock_bytes,
    superblocks,
)

LOWEST, HIGHEST, MOST = -8, 7, 15  # of q, and of a multiplier
PERM = (0, 2, 4, 6, 1, 3, 5, 7)
GROUPS = SUPERBLOCK // GROUP
_CHUNK = 2**17  # weights worked on at once: the intermediate results stay in the cache
# The largest weight of a group over its step: what is tried. Beyond 8 the largest are cut.
_REACHES = (6.6, 7.0, 7.3, 7.6, 7.9, 8.3, 8.8, 9.5, 10.5, 12.0)
# The largest step of a superblock over its scale: what is tried; 15 has the finest multipliers.
_TOPS = tuple(7.0 + i / 8 for i in range(68))
_FINALISTS = 2  # scales of a superblock that are compared by their true error


@dataclass(frozen=True, eq=False)
class Scales:
    """What a matrix' integers are worth.

    Attributes:
        scale_NS: of each superblock, fp32 numbers that bf16 holds.
        mult_NSG: of each group, fp32 integers 0..15.
    """

    scale_NS: Tensor
    mult_NSG: Tensor

    @property
    def step_NSG(self) -> Tensor:
        """What one step of each group is worth; exact."""
        return self.scale_NS[..., None] * self.mult_NSG


def quantize(weight_NK: Tensor, importance_K: Tensor | None = None) -> PackedMatrix:
    """The nearest matrix of this format, by a search for scales and multipliers.

    Args:
        weight_NK: floats; worked on a few rows at a time.
        importance_K: how much an error in each column matters, such as the mean square of that
            input; None: all alike.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    N, K = weight_NK.shape
    data = torch.empty(layout("int4", N, K)[0][0], dtype=torch.uint8)
    step = rows_at_once(K)
    for first in range(0, N, step):
        chunk_RK = weight_NK[first : first + step].float()
        scales = choose_scales(chunk_RK, importance_K)
        q_RK = nearest(chunk_RK, scales)
        tiles = slice(first // TILE, padded(first + len(chunk_RK), TILE) // TILE)
        pack_into(data[tiles], q_RK, scales, K)
    return PackedMatrix("int4", N, K, data)


def rows_at_once(columns: int) -> int:
    """Rows of a chunk: whole tiles."""
    return max(TILE, _CHUNK // padded(columns, SUPERBLOCK) // TILE * TILE)


def grouped(x_RK: Tensor) -> Tensor:
    """Rows as superblocks and groups, [R, S, G, 32], filled up with zeros."""
    K = x_RK.shape[-1]
    x_RK = F.pad(x_RK, (0, padded(K, SUPERBLOCK) - K))
    return x_RK.unflatten(-1, (-1, GROUPS, GROUP))


def choose_scales(weight_RK: Tensor, importance_K: Tensor | None = None) -> Scales:
    """Scales and multipliers with the least weighted squared error that a search finds.

    First each group's own best step, then the scale of which these are most nearly multiples,
    then the true errors of a few such scales with neighbouring multipliers, and last the scale
    that fits the integers found best.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    w = grouped(weight_RK)
    largest = largest_of(w)
    # The integers reach one further below zero: the sign of a scale decides which side that is.
    above = w.amax(-1) >= -w.amin(-1)
    sign = torch.where((largest * (above * 2 - 1)).sum(-1) > 0, -1.0, 1.0)
    h = None if importance_K is None else grouped(importance_K.float()[None])
    search = Search(w, h, LOWEST, HIGHEST)
    step, weight = _own_steps(search, largest, sign)
    scale, mult = _finalists(search, step, weight, sign)
    return Scales(*_refined(search, scale, mult))


def largest_of(w: Tensor) -> Tensor:
    """The largest size along the last dimension.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    largest = w.abs().amax(-1)
    if not bool(largest.isfinite().all()):
        raise CheckpointError("cannot quantize a matrix that holds NaN or Inf")
    return largest


class Search:
    """The weighted squared error of each group for given steps, in memory that is used again.

    Args:
        w: weights, those of a group along the last dimension.
        h: how much each counts; None: all alike.
        lowest: integer.
        highest: integer.
    """

    def __init__(self, w: Tensor, h: Tensor | None, lowest: int, highest: int) -> None:
        self.w, self.h, self.lowest, self.highest = w, h, lowest, highest
        self.q, self.off = torch.empty_like(w), torch.empty_like(w)

    def error(self, step: Tensor) -> Tensor:
        """Of each group; leaves the integers in `q`."""
        torch.mul(self.w, inverse(step)[..., None], out=self.q)
        self.q.round_().clamp_(self.lowest, self.highest)
        torch.mul(self.q, step[..., None], out=self.off)
        self.off.sub_(self.w).square_()
        if self.h is not None:
            self.off.mul_(self.h)
        return self.off.sum(-1)

    def fit(self) -> tuple[Tensor, Tensor]:
        """Of each group the sums h w q and h q q, for the integers in `q`."""
        hq = torch.mul(self.q, self.h, out=self.off) if self.h is not None else self.q
        hqq = (hq * self.q).sum(-1)
        return (hq * self.w).sum(-1), hqq


def inverse(step: Tensor) -> Tensor:
    """1 / step, and 0 where that is no number: a group without a step is all zeros."""
    inverse = step.reciprocal()
    return torch.where(inverse.isfinite(), inverse, 0.0)


def _own_steps(search: Search, largest: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """The best step of each group by itself, and how fast its error grows away from it."""
    best = torch.full_like(largest, torch.inf)
    found = torch.zeros_like(largest)
    signed = largest * sign[..., None]
    for reach in _REACHES:
        step = signed / reach
        error = search.error(step)
        torch.where(error < best, step, found, out=found)
        torch.minimum(error, best, out=best)
    search.error(found)
    hwq, hqq = search.fit()
    fitted = torch.where(hqq > 0, hwq / hqq, found)
    return fitted, hqq


def _finalists(search: Search, step: Tensor, weight: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """The scale of each superblock and its multipliers."""
    size = step * sign[..., None]  # now above zero, but for odd groups that fit nothing
    top = size.amax(-1)
    costs = []
    for reach in _TOPS:
        scale = top[..., None] / reach
        mult = (size * inverse(scale)).round_().clamp_(0, MOST)
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
    """Of each group the least error, and the multiplier that has it, beside the nearest one."""
    near = (step * inverse(scale)[..., None]).round_().clamp_(0, MOST)
    best = torch.full_like(step, torch.inf)
    found = torch.zeros_like(step)
    for beside in (0, -1, 1):
        mult = (near + beside).clamp_(0, MOST)
        error = search.error(scale[..., None] * mult)
        found = torch.where(error < best, mult, found)
        best = torch.minimum(error, best)
    return best, found


def _refined(search: Search, scale: Tensor, mult: Tensor) -> tuple[Tensor, Tensor]:
    """The scale fitted to the integers, where that is better than what it was."""
    before = search.error(scale[..., None] * mult).sum(-1)
    hwq, hqq = search.fit()
    above, below = (hwq * mult).sum(-1), (hqq * mult.square()).sum(-1)
    fitted = bf16(torch.where(below > 0, above / below, scale))
    after = search.error(fitted[..., None] * mult).sum(-1)
    scale = torch.where(after < before, fitted, scale)
    # Rows of zeros, and numbers too small for a step, are exactly zero.
    return scale, torch.where((scale == 0)[..., None], 0.0, mult)


def bf16(x: Tensor) -> Tensor:
    """Rounded to a scale that can be stored; 0 for what is none."""
    return x.bfloat16().float().nan_to_num_(0.0, 0.0, 0.0)


def nearest(weight_RK: Tensor, scales: Scales) -> Tensor:
    """The integers [R, S * 256] nearest to the weights, fp32."""
    q = grouped(weight_RK) * inverse(scales.step_NSG)[..., None]
    return q.round_().clamp_(LOWEST, HIGHEST).flatten(1)


def pack_into(data_TB: Tensor, q_RK: Tensor, scales: Scales, columns: int) -> None:
    """Writes rows into their tiles.

    Args:
        data_TB: the tiles' bytes; filled.
        q_RK: integers -8..7, K padded to whole superblocks; R may leave the last tile unfilled.
        scales: of these rows.
        columns: of the matrix.
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
    """Integers counted from the lowest one, uint8 [T, 16, S, G, 32]; rows up to whole tiles."""
    q_RK = F.pad(q_RK, (0, 0, 0, tiles * TILE - len(q_RK))) - lowest
    return q_RK.to(torch.uint8).view(tiles, TILE, -1, GROUPS, GROUP)


def pack_nibbles(u: Tensor) -> Tensor:
    """Four-bit numbers [T, 16, S, G, 32] two to a byte: [T, S, G, 4, 16, 4]."""
    halves = u.unflatten(-1, (2, 4, 4))
    return (halves[..., 0, :, :] | (halves[..., 1, :, :] << 4)).permute(0, 2, 3, 4, 1, 5)


def unpack_nibbles(bytes_TGB: Tensor) -> Tensor:
    """The reverse, of one superblock: [T, G, 256] to [T, 16, G, 32]."""
    quants = bytes_TGB.unflatten(-1, (4, TILE, 4)).permute(0, 3, 1, 2, 4)
    return torch.stack((quants & 15, quants >> 4), 3).flatten(3)


def pack_scales(scale_RS: Tensor, tiles: int) -> Tensor:
    """Scales as bytes [T, S, 32]."""
    scale = F.pad(scale_RS, (0, 0, 0, tiles * TILE - len(scale_RS))).bfloat16()
    return scale.view(tiles, TILE, -1).transpose(1, 2).contiguous().view(torch.uint8)


def unpack_scales(bytes_TB: Tensor) -> Tensor:
    """The reverse, of one superblock: [T, 32] to fp32 [T, 16]."""
    return bytes_TB.contiguous().view(torch.bfloat16).float()


def unpack(data_TB: Tensor, columns: int) -> tuple[Tensor, Scales]:
    """The reverse of `pack_into`: integers as int8 [T * 16, S * 256], and their scales."""
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
        mults = data_TB[:, at + size : end - SCALES].view(T, TILE, 4)
        for j, group in enumerate(PERM):
            mult[:, :, s, group] = ((mults[:, :, j // 2] >> (4 * (j % 2))) & 15).float()
        scale[:, :, s] = unpack_scales(data_TB[:, end - SCALES : end])
        at = end
    return q.view(T * TILE, -1), Scales(scale.flatten(0, 1), mult.flatten(0, 1))


def values(data_TB: Tensor, columns: int) -> Tensor:
    """What tiles stand for, fp32 [T * 16, K]; exact."""
    q, scales = unpack(data_TB, columns)
    w = q.float().view(len(q), -1, GROUPS, GROUP) * scales.step_NSG[..., None]
    return w.flatten(1)[:, :columns]
