"""Eight bits per weight and one scale per row: w[n, k] ~ scale[n] * q[n, k], q in -127..127.

Bytes of a tile (16 rows): for every four columns, 16 rows x 4 bytes, each q + 128.

Shapes: N rows, K columns, R rows of a chunk, T tiles.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.errors import CheckpointError
from gemmule.quant.layout import ALIGN, TILE, padded, tensor_specs

LARGEST = 127
_CHUNK = 2**20  # weights converted at once


def quantize(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Scales each row so that its largest weight becomes 127, and packs it.

    Returns:
        The tiles, uint8 [T, bytes], and the rows' scales, fp32 [T * 16].

    Raises:
        CheckpointError: for NaN or Inf.
    """
    N, K = weight_NK.shape
    (shape, _), scales_spec = tensor_specs("int8", N, K)
    assert scales_spec is not None
    data, scales_N = torch.empty(shape, dtype=torch.uint8), torch.zeros(scales_spec[0])
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
    return data, scales_N


def _packed(q_RK: Tensor) -> Tensor:
    R, K = q_RK.shape
    q_RK = F.pad(q_RK, (0, padded(K, ALIGN) - K, 0, padded(R, TILE) - R)) + 128
    return q_RK.to(torch.uint8).view(-1, TILE, padded(K, ALIGN) // 4, 4).transpose(1, 2).flatten(1)


def unpack(data_TB: Tensor) -> Tensor:
    """The integers of tiles, int8 [T * 16, K padded to 64]."""
    q = data_TB.view(len(data_TB), -1, TILE, 4).transpose(1, 2).reshape(len(data_TB) * TILE, -1)
    return (q ^ 128).view(torch.int8)  # flipping the top bit of x + 128 gives x


def dequantize(data_TB: Tensor, scales_N: Tensor, columns: int) -> Tensor:
    """The values of tiles, fp32 [T * 16, K]."""
    return unpack(data_TB)[:, :columns].float() * scales_N[:, None]
