"""Eight bits a weight and a scale of each row: w[n, k] ~ scale[n] * q[n, k], q in -127..127.

Bytes of a tile (16 rows): for every four columns, 16 rows x 4 bytes, each q + 128.

Shapes: N rows, K columns, T tiles.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.errors import CheckpointError
from gemmule.quant.packed import ALIGN, TILE, PackedMatrix, layout, padded

LARGEST = 127
_CHUNK = 2**20  # weights worked on at once


def quantize(weight_NK: Tensor) -> PackedMatrix:
    """Each row scaled so that its largest weight is 127; worked on a few rows at a time.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    N, K = weight_NK.shape
    (shape, _), scales_form = layout("int8", N, K)
    assert scales_form is not None
    data, scales_N = torch.empty(shape, dtype=torch.uint8), torch.zeros(scales_form[0])
    step = max(TILE, _CHUNK // K // TILE * TILE)
    for first in range(0, N, step):
        chunk_RK = weight_NK[first : first + step].float()
        scale_R = chunk_RK.abs().amax(-1) / LARGEST
        if not bool(scale_R.isfinite().all()):
            raise CheckpointError("cannot quantize a matrix that holds NaN or Inf")
        inverse_R = torch.where(scale_R > torch.finfo(torch.float32).tiny, 1 / scale_R, 0.0)
        q_RK = (chunk_RK * inverse_R[:, None]).round_().clamp_(-LARGEST, LARGEST)
        scales_N[first : first + len(q_RK)] = scale_R
        tiles = slice(first // TILE, padded(first + len(q_RK), TILE) // TILE)
        data[tiles] = _packed(q_RK)
    return PackedMatrix("int8", N, K, data, scales_N)


def _packed(q_RK: Tensor) -> Tensor:
    R, K = q_RK.shape
    q_RK = F.pad(q_RK, (0, padded(K, ALIGN) - K, 0, padded(R, TILE) - R)) + 128
    return q_RK.to(torch.uint8).view(-1, TILE, padded(K, ALIGN) // 4, 4).transpose(1, 2).flatten(1)


def unpack(data_TB: Tensor) -> Tensor:
    """Integers as int8 [T * 16, K padded to 64]."""
    q = data_TB.view(len(data_TB), -1, TILE, 4).transpose(1, 2).reshape(len(data_TB) * TILE, -1)
    return (q ^ 128).view(torch.int8)  # x + 128 with its highest bit turned is x


def values(data_TB: Tensor, scales_N: Tensor, columns: int) -> Tensor:
    """What tiles stand for, fp32 [T * 16, K]."""
    return unpack(data_TB)[:, :columns].float() * scales_N[:, None]
