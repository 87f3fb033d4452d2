"""Packing of arrays of integers into bits.

Fields follow one another, starting at the least significant bit of the first byte; the last byte is
padded with zeros. All functions work on whole arrays, without a loop over fields.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

WIDEST = 56  # bits of a field: with its offset within a byte it must fit into 64 bits


def packed(values: Ints, widths: Ints | int) -> bytes:
    """The values as fields of `widths` bits each, which must be wide enough."""
    widths = np.broadcast_to(np.asarray(widths, np.int64), values.shape)
    starts = np.cumsum(widths) - widths
    within = np.arange(int(widths.sum())) - np.repeat(starts, widths)
    return from_bits((np.repeat(values, widths) >> within) & 1)


def unpacked(data: Bytes, starts: Ints, widths: Ints | int) -> Ints:
    """The fields of `widths` bits that begin at the bits `starts` of `data`."""
    if not len(starts):
        return np.zeros(0, np.int64)
    padded = np.zeros(len(data) + 8, np.uint8)  # a load at the last byte reads seven more
    padded[: len(data)] = data
    loads: npt.NDArray[Any] = np.ndarray((len(data) + 1,), "<u8", padded, strides=(1,))
    values = loads[starts >> 3] >> (starts & 7).astype(np.uint64)
    masks = (np.uint64(1) << np.asarray(widths, np.uint64)) - np.uint64(1)
    return (values & masks).astype(np.int64)


def from_bits(bits: npt.NDArray[Any]) -> bytes:
    """Bits (0 or 1, or bool) as bytes."""
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def to_bits(data: Bytes, count: int) -> npt.NDArray[np.bool_]:
    """The first `count` bits of `data`."""
    return np.unpackbits(data, count=count, bitorder="little").astype(np.bool_)


def byte_count(bits: int) -> int:
    """Number of bytes that hold `bits` bits."""
    return -(-bits // 8)
