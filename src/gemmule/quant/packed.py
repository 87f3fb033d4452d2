"""A weight matrix as it is kept and multiplied with: packed integers, or plain floats.

Rows go in tiles of 16, padded with zeros, so that one load serves 16 rows of one column;
columns are padded with zeros to a multiple of 64. What the bytes of a tile mean is in int4.py,
int6.py and int8.py. Padding never changes a result.

Shapes: N rows (outputs), K columns (inputs), M tokens, S superblocks of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 16  # rows
SUPERBLOCK = 256  # columns whose products are added up as integers
GROUP = 32  # columns that share an int4 multiplier
ALIGN = 64  # columns are padded to a multiple of this
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16}
PACKED = ("int4", "int6", "int8")
FORMATS = (*PACKED, *FLOATS)
SCALES = 2 * TILE  # bytes at the end of a superblock of int4 and int6: a bf16 of each row


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """One matrix [N, K].

    Attributes:
        format: "int4", "int6", "int8", "f32" or "bf16".
        rows: N, without padding.
        columns: K, without padding.
        data: integers: uint8 [tiles, bytes of a tile]; floats: the plain matrix [N, K].
        scales: int8: what a step of each row is worth, fp32 [N, padded]; else None.
    """

    format: str
    rows: int
    columns: int
    data: Tensor
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        data, scales = layout(self.format, self.rows, self.columns)
        assert (tuple(self.data.shape), self.data.dtype) == data, (self.data.shape, data)
        found = None if self.scales is None else (tuple(self.scales.shape), self.scales.dtype)
        assert found == scales, (found, scales)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors, padding included."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits for each of the N x K weights, padding counted in."""
        return 8 * self.nbytes / (self.rows * self.columns)

    def dequantize(self) -> Tensor:
        """The values it stands for, fp32 [N, K]."""
        return values(self.format, self.data, self.scales, self.columns)[: self.rows]

    def chunks(self, tiles: int) -> Iterator[Tensor]:
        """`dequantize`'s rows, so many tiles at a time."""
        step = 1 if self.format in FLOATS else TILE
        for first in range(0, len(self.data), tiles * TILE // step):
            data = self.data[first : first + tiles * TILE // step]
            scales = self.scales
            if scales is not None:
                scales = scales[first * TILE : (first + len(data)) * TILE]
            yield values(self.format, data, scales, self.columns)[: self.rows - first * step]

    def take(self, ids: Tensor) -> Tensor:
        """Rows by number: [...] to fp32 [..., K]. What an embedding does."""
        if self.format in FLOATS:
            return self.data[ids].float()
        tile, row = ids.flatten() // TILE, ids.flatten() % TILE
        scales = None if self.scales is None else self.scales.view(-1, TILE)[tile].flatten()
        rows = values(self.format, self.data[tile], scales, self.columns)
        rows = rows.view(-1, TILE, self.columns)
        return rows[torch.arange(len(tile)), row].view(*ids.shape, self.columns)


def values(format: str, data: Tensor, scales: Tensor | None, columns: int) -> Tensor:
    """What all rows of these tiles stand for, padding rows included: fp32 [rows, K]."""
    from gemmule.quant import int4, int6, int8

    if format == "int4":
        return int4.values(data, columns)
    if format == "int6":
        return int6.values(data, columns)
    if format == "int8":
        assert scales is not None
        return int8.values(data, scales, columns)
    return data.float()


def padded(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def superblocks(columns: int) -> list[int]:
    """Columns of each superblock of a row, padding to 64 counted in."""
    whole, rest = divmod(padded(columns, ALIGN), SUPERBLOCK)
    return [SUPERBLOCK] * whole + ([rest] if rest else [])


def superblock_bytes(format: str, width: int) -> int:
    """Bytes that a tile's superblock of so many columns takes in int4 or int6, scales included."""
    multipliers = {"int4": 4 * TILE, "int6": 0}
    bits = {"int4": 4, "int6": 6}
    return TILE * width * bits[format] // 8 + multipliers[format] + SCALES


Form = tuple[tuple[int, ...], torch.dtype]  # shape and dtype of a tensor


def layout(format: str, rows: int, columns: int) -> tuple[Form, Form | None]:
    """Shape and dtype of a matrix' `data`, and of its `scales` where it has them."""
    tiles = padded(rows, TILE) // TILE
    if format in ("int4", "int6"):
        nbytes = sum(superblock_bytes(format, width) for width in superblocks(columns))
        return ((tiles, nbytes), torch.uint8), None
    if format == "int8":
        nbytes = padded(columns, ALIGN) * TILE
        return ((tiles, nbytes), torch.uint8), ((tiles * TILE,), torch.float32)
    return ((rows, columns), FLOATS[format]), None


def bits_per_weight(format: str, rows: int, columns: int) -> float:
    """What `PackedMatrix.bits_per_weight` would be."""
    forms = [form for form in layout(format, rows, columns) if form is not None]
    size = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in forms)
    return 8 * size / (rows * columns)


def plain(weight_NK: Tensor) -> PackedMatrix:
    """A float matrix as it is, without a copy."""
    kind = next(name for name, dtype in FLOATS.items() if dtype == weight_NK.dtype)
    rows, columns = weight_NK.shape
    return PackedMatrix(kind, rows, columns, weight_NK.contiguous())
