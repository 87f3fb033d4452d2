"""A weight matrix in memory, in one of five formats: packed integers or plain floats.

`FORMATS` holds what each format can do; layout.py describes the geometry that they share.

Shapes: N rows (outputs), K columns (inputs).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmule.quant import int4, int6, int8
from gemmule.quant.layout import FLOATS, TILE, tensor_specs


@dataclass(frozen=True)
class Format:
    """The operations of one format.

    Attributes:
        quantize: converts weights [N, K] to data, and to fp32 scales if the format has any.
        dequantize: converts data, scales and the number of columns back to fp32 [rows, K]; the
            rows that pad the last tile are included.
    """

    quantize: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    dequantize: Callable[[Tensor, Tensor | None, int], Tensor]


def _float_format(dtype: torch.dtype) -> Format:
    return Format(
        lambda weight_NK: (weight_NK.to(dtype).contiguous(), None),
        lambda data_NK, _, columns: data_NK.float(),
    )


def _dequantize_int8(data_TB: Tensor, scales_N: Tensor | None, columns: int) -> Tensor:
    assert scales_N is not None
    return int8.dequantize(data_TB, scales_N, columns)


FORMATS: Mapping[str, Format] = {
    "int4": Format(
        lambda weight_NK: (int4.quantize(weight_NK), None),
        lambda data_TB, _, columns: int4.dequantize(data_TB, columns),
    ),
    "int6": Format(
        lambda weight_NK: (int6.quantize(weight_NK), None),
        lambda data_TB, _, columns: int6.dequantize(data_TB, columns),
    ),
    "int8": Format(int8.quantize, _dequantize_int8),
    **{name: _float_format(dtype) for name, dtype in FLOATS.items()},
}


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """One matrix [N, K].

    Attributes:
        format: "int4", "int6", "int8", "f32" or "bf16".
        rows: N, without padding.
        columns: K, without padding.
        data: packed formats: uint8 [tiles, bytes per tile]; float formats: the matrix [N, K].
        scales: int8: the scale of each row, fp32 [N, padded]; other formats: None.
    """

    format: str
    rows: int
    columns: int
    data: Tensor
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        data, scales = tensor_specs(self.format, self.rows, self.columns)
        assert (tuple(self.data.shape), self.data.dtype) == data, (self.data.shape, data)
        given = None if self.scales is None else (tuple(self.scales.shape), self.scales.dtype)
        assert given == scales, (given, scales)

    @property
    def nbytes(self) -> int:
        """Size in bytes, scales and padding included."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits for each of the N x K weights, scales and padding included."""
        return 8 * self.nbytes / (self.rows * self.columns)

    def dequantize(self) -> Tensor:
        """The values of all weights, fp32 [N, K]."""
        return dequantize(self.format, self.data, self.scales, self.columns)[: self.rows]

    def chunks(self, tiles: int) -> Iterator[Tensor]:
        """The rows of `dequantize`, at most `tiles` tiles at a time."""
        step = 1 if self.format in FLOATS else TILE
        for first in range(0, len(self.data), tiles * TILE // step):
            data = self.data[first : first + tiles * TILE // step]
            scales = self.scales
            if scales is not None:
                scales = scales[first * TILE : (first + len(data)) * TILE]
            values = dequantize(self.format, data, scales, self.columns)
            yield values[: self.rows - first * step]

    def take(self, ids: Tensor) -> Tensor:
        """Looks up rows by number, as an embedding does: [...] to fp32 [..., K]."""
        if self.format in FLOATS:
            return self.data[ids].float()
        tile, row = ids.flatten() // TILE, ids.flatten() % TILE
        scales = None if self.scales is None else self.scales.view(-1, TILE)[tile].flatten()
        rows = dequantize(self.format, self.data[tile], scales, self.columns)
        rows = rows.view(-1, TILE, self.columns)
        return rows[torch.arange(len(tile)), row].view(*ids.shape, self.columns)


def quantize(weight_NK: Tensor, format: str) -> PackedMatrix:
    """Packs a matrix, each weight by itself.

    Args:
        weight_NK: floats; converted a few rows at a time.
        format: a key of FORMATS.

    Raises:
        CheckpointError: for NaN or Inf.
    """
    data, scales = FORMATS[format].quantize(weight_NK)
    N, K = weight_NK.shape
    return PackedMatrix(format, N, K, data, scales)


def dequantize(format: str, data: Tensor, scales: Tensor | None, columns: int) -> Tensor:
    """The values of all rows of these tiles, padding rows included: fp32 [rows, K]."""
    return FORMATS[format].dequantize(data, scales, columns)


def plain(weight_NK: Tensor) -> PackedMatrix:
    """Wraps a float matrix without copying it."""
    format = next(name for name, dtype in FLOATS.items() if dtype == weight_NK.dtype)
    N, K = weight_NK.shape
    return PackedMatrix(format, N, K, weight_NK.contiguous())
