"""Arrays of a JAX parameter tree, read lazily from a file of any kind."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gemmule.errors import CheckpointError

# numpy's names of the dtypes of weights. numpy has no bfloat16 and stores that of ml_dtypes as two
# opaque bytes.
DTYPES = {
    "<f8": torch.float64,
    "<f4": torch.float32,
    "<f2": torch.float16,
    "|V2": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}
_LARGEST_DIM = 2**60  # and number of elements: torch counts in 64 bits


class StoredArray(ABC):
    """One array, read lazily.

    Attributes:
        shape: shape in the file; no dimension is zero.
        dtype: dtype in the file.
        where: file and name in it, for messages.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> None:
        self.shape, self.dtype, self.where = shape, dtype, where

    @abstractmethod
    def runs(self, first: int, counts: Iterable[int]) -> Iterator[Tensor]:
        """Yields consecutive runs of elements, flat, in row-major order, from `first` on."""

    @property
    def nbytes(self) -> int:
        """Size of all elements in bytes."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def parse_array(shape: object, dtype: str, where: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Checks the shape and dtype that a file states for an array.

    Raises:
        CheckpointError: when it is not a non-empty array of floats.
    """
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{where} is stored as {dtype}; supported are little-endian float16, float32, float64 "
            "and bfloat16"
        )
    possible = isinstance(shape, tuple) and all(
        isinstance(n, int) and 0 < n <= _LARGEST_DIM for n in shape
    )
    if not possible:  # not shown: it can be a number that Python refuses to print
        raise CheckpointError(f"{where} has an impossible shape")
    assert isinstance(shape, tuple)
    if math.prod(shape) > _LARGEST_DIM:
        raise CheckpointError(f"{where} has the impossible shape {shape!r:.80}")
    return shape, DTYPES[dtype]


def refuse_bombs(arrays: Iterable[StoredArray], stored: int, source: Path) -> None:
    """Raises for arrays that claim far more than the `stored` bytes of their file.

    Weights hardly compress; the 64 MiB are for small models, whose norms are all equal.
    """
    claimed = sum(array.nbytes for array in arrays)
    if claimed > max_unpacked(stored):
        raise CheckpointError(
            f"{source} has {stored} bytes and claims to hold {claimed}: it is damaged, or crafted "
            "to exhaust memory"
        )


def max_unpacked(stored: int) -> int:
    """The largest plausible unpacked size, in bytes, of `stored` bytes of weights."""
    return 20 * stored + 2**26
