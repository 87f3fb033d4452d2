"""The geometry of packed matrices: tiles, superblocks, and the shapes of their tensors.

Rows go in tiles of 16, padded with zeros, so that one load serves 16 rows of one column. Columns
are padded with zeros to a multiple of 64 and grouped into superblocks of 256, whose products add up
as integers. Padding never changes a result. The meaning of a tile's bytes is described in int4.py,
int6.py and int8.py.
"""

import torch

TILE = 16  # rows
SUPERBLOCK = 256  # columns whose products are added up as integers
GROUP = 32  # columns that share an int4 multiplier
ALIGN = 64  # columns are padded to a multiple of this
SCALE_BYTES = 2 * TILE  # at the end of a tile's superblock in int4 and int6: a bf16 per row
FLOATS = {"f32": torch.float32, "bf16": torch.bfloat16}
PACKED = ("int4", "int6", "int8")

TensorSpec = tuple[tuple[int, ...], torch.dtype]  # shape and dtype


def padded(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple of `multiple`."""
    return -(-size // multiple) * multiple


def superblocks(columns: int) -> list[int]:
    """The number of columns in each superblock of a row, padding to 64 included."""
    whole, rest = divmod(padded(columns, ALIGN), SUPERBLOCK)
    return [SUPERBLOCK] * whole + ([rest] if rest else [])


def superblock_bytes(format: str, width: int) -> int:
    """Bytes of one superblock, `width` columns wide, of an int4 or int6 tile; scales included."""
    multipliers = {"int4": 4 * TILE, "int6": 0}
    bits = {"int4": 4, "int6": 6}
    return TILE * width * bits[format] // 8 + multipliers[format] + SCALE_BYTES


def tensor_specs(format: str, rows: int, columns: int) -> tuple[TensorSpec, TensorSpec | None]:
    """The shape and dtype of a matrix's data, and of its row scales if the format has any."""
    tiles = padded(rows, TILE) // TILE
    if format in ("int4", "int6"):
        nbytes = sum(superblock_bytes(format, width) for width in superblocks(columns))
        return ((tiles, nbytes), torch.uint8), None
    if format == "int8":
        nbytes = padded(columns, ALIGN) * TILE
        return ((tiles, nbytes), torch.uint8), ((tiles * TILE,), torch.float32)
    return ((rows, columns), FLOATS[format]), None


def bits_per_weight(format: str, rows: int, columns: int) -> float:
    """Bits per weight of a matrix of this size in `format`, padding included."""
    specs = [spec for spec in tensor_specs(format, rows, columns) if spec is not None]
    size = sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in specs)
    return 8 * size / (rows * columns)
