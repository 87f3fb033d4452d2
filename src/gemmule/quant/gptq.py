"""int4 by second-order information: GPTQ (arXiv 2210.17323).

GPTQ minimizes the error of the products with typical inputs rather than that of the weights: the
sum over rows of (w - v) H (w - v), where H is the sum of x x^T over calibration inputs x. Columns
are rounded one after another, and the columns that are still unrounded compensate for the error of
each as far as possible; the inverse of H says how.

Scales are chosen beforehand by the search in int4.py, weighted by the columns' mean squares.
Columns with the largest inputs are rounded first, while many others can still compensate. The
order is not stored anywhere.

Shapes: N rows, K columns, R rows of a chunk, B columns of a block.
"""

import torch
from torch import Tensor

from gemmule.errors import CheckpointError
from gemmule.quant import int4
from gemmule.quant.int4 import Scales
from gemmule.quant.layout import GROUP, SUPERBLOCK, TILE, padded, tensor_specs
from gemmule.quant.packed import PackedMatrix

DAMPING = 0.01  # fraction of the mean diagonal of H that is added to the diagonal
_ROWS = 4096  # rows converted at once
# Columns whose errors update the rest of the block at once, and what lies beyond it together.
_BLOCK = 64


class Hessian:
    """Accumulates x x^T over the inputs of a layer.

    Args:
        columns: number of inputs of the layer.
    """

    def __init__(self, columns: int) -> None:
        self.sum_KK = torch.zeros(columns, columns)
        self.count = 0

    def add(self, x_MK: Tensor) -> None:
        """Adds a batch of inputs [..., K]."""
        x_MK = x_MK.flatten(0, -2).float()
        self.sum_KK.addmm_(x_MK.T, x_MK)
        self.count += len(x_MK)

    @property
    def mean_KK(self) -> Tensor:
        """E[x x^T]."""
        return self.sum_KK / max(1, self.count)


def quantize(weight_NK: Tensor, hessian_KK: Tensor, damping: float = DAMPING) -> PackedMatrix:
    """Packs a matrix in int4 with nearly the least error on inputs like those of calibration.

    Args:
        weight_NK: floats; converted a few thousand rows at a time.
        hessian_KK: E[x x^T] of the inputs.
        damping: fraction of the mean diagonal that is added to the diagonal.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    N, K = weight_NK.shape
    importance_K = hessian_KK.diagonal()
    if not bool(importance_K.isfinite().all()):
        raise CheckpointError("calibration gave inputs that are NaN or Inf")
    order_K = importance_K.argsort(descending=True, stable=True)
    factor_KK = _inverse_factor(hessian_KK[order_K][:, order_K], damping)
    # Columns that had no input at all count a little too: other text may use them.
    importance_K = importance_K + damping * importance_K.mean()
    data = torch.empty(tensor_specs("int4", N, K)[0][0], dtype=torch.uint8)
    for first in range(0, N, _ROWS):
        chunk_RK = weight_NK[first : first + _ROWS].float()
        scales = _scales(chunk_RK, importance_K)
        q_RK = _rounded(chunk_RK, scales, factor_KK, order_K)
        tiles = slice(first // TILE, padded(first + len(chunk_RK), TILE) // TILE)
        int4.pack_into(data[tiles], q_RK, scales, K)
    return PackedMatrix("int4", N, K, data)


def _inverse_factor(hessian_KK: Tensor, damping: float) -> Tensor:
    """The upper factor U of the inverse of the damped H, U^T U = H^-1, each row over its diagonal.

    Row k then holds how much each later column changes to compensate a unit of error in column k.
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
        damping *= 10  # too few inputs for this many columns: fp32 was not precise enough


def _scales(w_RK: Tensor, importance_K: Tensor) -> Scales:
    """Scales and multipliers from the search in int4.py, a few rows at a time."""
    step = int4.rows_at_once(w_RK.shape[1])
    parts = [int4.choose_scales(part, importance_K) for part in w_RK.split(step)]
    return Scales(
        torch.cat([part.scale_NS for part in parts]), torch.cat([part.mult_NSG for part in parts])
    )


def _rounded(w_RK: Tensor, scales: Scales, factor_KK: Tensor, order_K: Tensor) -> Tensor:
    """The integers, [R, K padded to whole superblocks]."""
    K = w_RK.shape[1]
    # A copy with the columns in the order of rounding, as in everything that follows.
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
    w_BR = w_RK[:, first:last].T.contiguous()  # columns become contiguous
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
