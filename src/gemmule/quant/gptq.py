"""int4 by second-order information: GPTQ (arXiv 2210.17323).

What is to stay small is not the error of the weights but that of their products with the inputs
they will meet: sum over rows of (w - v) H (w - v), where H adds up x x^T over calibration inputs x.
Columns are rounded one after the other, and what a column's rounding did to the products is made
good as far as possible by the columns that are still to come; how, the inverse of H says.

Scales are searched for beforehand, weighed by the columns' mean squares. Columns with the largest
inputs go first, while there are many left to make their errors good; that order is in nothing
that is stored.

Shapes: N rows, K columns, R rows of a chunk, B columns of a block.
"""

import torch
from torch import Tensor

from gemmule.errors import CheckpointError
from gemmule.quant import int4
from gemmule.quant.int4 import Scales
from gemmule.quant.packed import GROUP, SUPERBLOCK, TILE, PackedMatrix, layout, padded

DAMPING = 0.01  # of H's mean diagonal, added to it
_ROWS = 4096  # worked on at once
_BLOCK = 64  # columns whose errors are passed on within the block at once, beyond it together


class Hessian:
    """Adds up x x^T over a layer's inputs.

    Args:
        columns: how many inputs the layer has.
    """

    def __init__(self, columns: int) -> None:
        self.sum_KK = torch.zeros(columns, columns)
        self.count = 0

    def add(self, x_MK: Tensor) -> None:
        """Takes in inputs [..., K]."""
        x_MK = x_MK.flatten(0, -2).float()
        self.sum_KK.addmm_(x_MK.T, x_MK)
        self.count += len(x_MK)

    @property
    def mean_KK(self) -> Tensor:
        """E[x x^T]."""
        return self.sum_KK / max(1, self.count)


def quantize(weight_NK: Tensor, hessian_KK: Tensor, damping: float = DAMPING) -> PackedMatrix:
    """The matrix of the int4 format with nearly the least error on such inputs.

    Args:
        weight_NK: floats; worked on a few thousand rows at a time.
        hessian_KK: E[x x^T] of the inputs.
        damping: share of the mean diagonal that is added to the diagonal.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    N, K = weight_NK.shape
    importance_K = hessian_KK.diagonal()
    if not bool(importance_K.isfinite().all()):
        raise CheckpointError("calibration gave inputs that are NaN or Inf")
    order_K = importance_K.argsort(descending=True, stable=True)
    factor_KK = _inverse_factor(hessian_KK[order_K][:, order_K], damping)
    # What has no inputs at all matters a little too: the next text may have some.
    importance_K = importance_K + damping * importance_K.mean()
    data = torch.empty(layout("int4", N, K)[0][0], dtype=torch.uint8)
    for first in range(0, N, _ROWS):
        chunk_RK = weight_NK[first : first + _ROWS].float()
        scales = _scales(chunk_RK, importance_K)
        q_RK = _rounded(chunk_RK, scales, factor_KK, order_K)
        tiles = slice(first // TILE, padded(first + len(chunk_RK), TILE) // TILE)
        int4.pack_into(data[tiles], q_RK, scales, K)
    return PackedMatrix("int4", N, K, data)


def _inverse_factor(hessian_KK: Tensor, damping: float) -> Tensor:
    """The upper factor U of the damped H's inverse, U^T U = H^-1, each row over its diagonal.

    Row k then says what a unit of error in column k is worth to the columns after it.
    """
    mean = float(hessian_KK.diagonal().mean()) or 1.0
    while True:
        damped_KK = hessian_KK.clone()
        damped_KK.diagonal().add_(damping * mean)
        lower_KK, failed = torch.linalg.cholesky_ex(damped_KK)
        if not failed:
            inverse_KK = torch.cholesky_inverse(lower_KK)
            upper_KK, failed = torch.linalg.cholesky_ex(inverse_KK, upper=True)
            if not failed:
                return upper_KK / upper_KK.diagonal()[:, None]
        damping *= 10  # too few inputs for so many columns, and fp32 ran out


def _scales(w_RK: Tensor, importance_K: Tensor) -> Scales:
    """The search of int4.py, a few rows at a time."""
    step = int4.rows_at_once(w_RK.shape[1])
    parts = [int4.choose_scales(part, importance_K) for part in w_RK.split(step)]
    return Scales(
        torch.cat([part.scale_NS for part in parts]), torch.cat([part.mult_NSG for part in parts])
    )


def _rounded(w_RK: Tensor, scales: Scales, factor_KK: Tensor, order_K: Tensor) -> Tensor:
    """The integers, [R, K] filled up to whole superblocks."""
    K = w_RK.shape[1]
    # A copy, in the order in which columns are rounded, as is all that follows.
    w_RK = w_RK[:, order_K]
    step_RK = scales.step_NSG.flatten(1).repeat_interleave(GROUP, 1)[:, order_K]
    q_RK = torch.empty_like(w_RK)
    for first in range(0, K, _BLOCK):
        last = min(first + _BLOCK, K)
        errors_RB = _block(w_RK, q_RK, step_RK, factor_KK, first, last)
        w_RK[:, last:].addmm_(errors_RB, factor_KK[first:last, last:], alpha=-1)
    out_RK = torch.zeros(len(q_RK), padded(K, SUPERBLOCK))
    out_RK[:, order_K] = q_RK
    return out_RK


def _block(
    w_RK: Tensor, q_RK: Tensor, step_RK: Tensor, factor_KK: Tensor, first: int, last: int
) -> Tensor:
    """Rounds columns first..last one by one; returns their errors [R, last - first]."""
    w_BR = w_RK[:, first:last].T.contiguous()  # a column is contiguous now
    step_BR = step_RK[:, first:last].T.contiguous()
    inverse_BR = int4.inverse(step_BR)
    q_BR, errors_BR = torch.empty_like(w_BR), torch.empty_like(w_BR)
    factor_BB = factor_KK[first:last, first:last]
    for k in range(last - first):
        torch.mul(w_BR[k], inverse_BR[k], out=q_BR[k])
        q_BR[k].round_().clamp_(int4.LOWEST, int4.HIGHEST)
        torch.sub(w_BR[k], q_BR[k] * step_BR[k], out=errors_BR[k])
        w_BR[k + 1 :].addr_(factor_BB[k, k + 1 :], errors_BR[k], alpha=-1)
    q_RK[:, first:last] = q_BR.T
    return errors_BR.T
