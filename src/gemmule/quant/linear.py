"""Linear and embedding layers over packed matrices, with the fastest product available.

That is the native kernels if the library was built. Otherwise it is torch's own int4 and int8
products, which take float activations: their formats hold the same weights, but activations are not
rounded. `plain` selects the arithmetic of product.py, which the native kernels equal bit for bit.

Shapes: M tokens, N outputs, K inputs, G groups of a row.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemmule.console import console
from gemmule.quant import int4, int6, int8, native, product
from gemmule.quant.layout import ALIGN, FLOATS, GROUP, SUPERBLOCK, TILE, padded
from gemmule.quant.packed import PackedMatrix

_REPACKED = 2**24  # weights converted at once
_MANY = 64  # tokens from which unpacking the matrix pays off
Product = Callable[[Tensor], Tensor]  # fp32 [M, K] to fp32 [M, N]


class PackedLinear(nn.Module):
    """A linear layer without a bias over a packed matrix.

    Args:
        matrix: the weight.
        plain: use the reference arithmetic instead of kernels, for comparisons.

    Attributes:
        packed: the weight.
    """

    def __init__(self, matrix: PackedMatrix, plain: bool = False) -> None:
        super().__init__()
        self.packed = matrix
        self.product = chosen_product(matrix, plain)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N], in the dtype of `x`."""
        y_MN = self.product(x.flatten(0, -2).float())
        return y_MN.to(x.dtype).unflatten(0, x.shape[:-1])


class PackedEmbedding(nn.Module):
    """An embedding over a packed matrix, `packed`."""

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.packed = matrix

    @property
    def weight(self) -> Tensor:
        """All rows, fp32, dequantized at each access: for code that reads the whole of it once."""
        return self.packed.dequantize()

    def forward(self, ids: Tensor) -> Tensor:
        """[...] to fp32 [..., K]."""
        return self.packed.take(ids)


def chosen_product(matrix: PackedMatrix, plain: bool = False) -> Product:
    """The fastest available product with `matrix`; the reference one if `plain`."""
    if matrix.format in FLOATS:
        return lambda x_MK: F.linear(x_MK.to(matrix.data.dtype), matrix.data).float()
    if plain:
        return lambda x_MK: product.linear(matrix, x_MK)
    if native.available():
        return lambda x_MK: native.packed_linear(
            x_MK, matrix.data, matrix.scales, matrix.format, matrix.rows, matrix.columns
        )
    _report_fallback()
    torch_product = {"int4": _torch_int4, "int6": _torch_int6, "int8": _torch_int8}[matrix.format]
    packed = torch_product(matrix)
    return lambda x_MK: packed(x_MK) if len(x_MK) < _MANY else _as_floats(matrix, x_MK)


@cache
def _report_fallback() -> None:
    console.print(
        f"no native kernels ({native.unavailable_reason()}): packed models run on torch's kernels, "
        "slower and with other roundings",
        style="dim",
    )


def _as_floats(matrix: PackedMatrix, x_MK: Tensor) -> Tensor:
    """The product with the dequantized matrix, some of its rows at a time."""
    tiles = max(1, _REPACKED // (matrix.columns * TILE))
    return torch.cat([x_MK @ rows_RK.T for rows_RK in matrix.chunks(tiles)], 1)


def _torch_int8(matrix: PackedMatrix) -> Product:
    assert matrix.scales is not None
    weight_NK = int8.unpack(matrix.data)[: matrix.rows, : matrix.columns].contiguous()
    scales_N = matrix.scales[: matrix.rows]
    return lambda x_MK: torch.ops.aten._weight_int8pack_mm(x_MK, weight_NK, scales_N)


def _torch_int6(matrix: PackedMatrix) -> Product:
    """One int8 product per superblock, with that superblock's scale for each row."""
    q_NK, scale_NS = int6.unpack(matrix.data, matrix.columns)
    parts_NC = q_NK[: matrix.rows, : matrix.columns].split(SUPERBLOCK, 1)
    scales_N = scale_NS[: matrix.rows].T.contiguous()
    weights = [
        (part_NC.contiguous(), scale_N) for part_NC, scale_N in zip(parts_NC, scales_N, strict=True)
    ]

    def multiply(x_MK: Tensor) -> Tensor:
        products = [
            torch.ops.aten._weight_int8pack_mm(x_MC.contiguous(), weight_NC, scale_N)
            for x_MC, (weight_NC, scale_N) in zip(x_MK.split(SUPERBLOCK, 1), weights, strict=True)
        ]
        return torch.stack(products).sum(0)

    return multiply


def _torch_int4(matrix: PackedMatrix) -> Product:
    """Torch's groups of 32 with an fp32 scale each, which is our scale times our multiplier."""
    columns = padded(matrix.columns, ALIGN)
    tiles = max(1, _REPACKED // (columns * TILE))
    parts = [_repacked(data_TB, matrix.columns, columns) for data_TB in matrix.data.split(tiles)]

    def multiply(x_MK: Tensor) -> Tensor:
        x_MK = F.pad(x_MK, (0, columns - matrix.columns))
        products = [
            torch.ops.aten._weight_int4pack_mm_for_cpu(x_MK, quants, GROUP, scales)
            for quants, scales in parts
        ]
        return torch.cat(products, 1)[:, : matrix.rows]

    return multiply


def _repacked(data_TB: Tensor, columns: int, wide: int) -> tuple[Tensor, Tensor]:
    q_NK, scales = int4.unpack(data_TB, columns)
    step_NG = scales.step_NSG.flatten(1)[:, : wide // GROUP]
    scales_and_zeros = torch.stack((step_NG.T, torch.zeros_like(step_NG.T)), -1).contiguous()
    unsigned_NK = (q_NK[:, :wide].int() - int4.LOWEST).contiguous()
    quants = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned_NK, 1)
    return quants, scales_and_zeros
