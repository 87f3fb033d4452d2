"""Arrays of a JAX parameter tree, still in their file, whatever keeps them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from gemmule.errors import CheckpointError

# numpy's spelling of what weights are stored in. It has no bfloat16, and keeps ml_dtypes' as two
# bytes without a meaning.
DTYPES = {
    "<f8": torch.float64,
    "<f4": torch.float32,
    "<f2": torch.float16,
    "|V2": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}
_LARGEST_DIM = 2**60  # and elements: torch counts in 64 bits


class StoredArray(ABC):
    """One array; nothing is read before it is asked for.

    Attributes:
        shape: as the file has it; no dimension is zero.
        dtype: as the file has it.
        where: file and name in it, for messages.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, where: str) -> None:
        self.shape, self.dtype, self.where = shape, dtype, where

    @abstractmethod
    def pieces(self, first: int, counts: Iterable[int]) -> Iterator[Tensor]:
        """Successive runs of elements in row-major order, flat, from element `first` on."""

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def parse_array(shape: object, dtype: str, where: str) -> tuple[tuple[int, ...], torch.dtype]:
    """Checks what a file says of an array.

    Raises:
        CheckpointError: for anything but an array of floats with something in it.
    """
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{where} is stored as {dtype}; supported are little-endian float16, float32, float64 "
            "and bfloat16"
        )
    possible = isinstance(shape, tuple) and all(
        isinstance(n, int) and 0 < n <= _LARGEST_DIM for n in shape
    )
    if not possible:  # which may be a number that Python refuses to print
        raise CheckpointError(f"{where} has an impossible shape")
    assert isinstance(shape, tuple)
    if math.prod(shape) > _LARGEST_DIM:
        raise CheckpointError(f"{where} has the impossible shape {shape!r:.80}")
    return shape, DTYPES[dtype]


def refuse_bombs(arrays: Iterable[StoredArray], stored: int, source: Path) -> None:
    """Raises for arrays that claim far more than the `stored` bytes they are kept in.

    Weights hardly compress; only a small model's norms, all alike, need the 64 MiB.
    """
    claimed = sum(array.nbytes for array in arrays)
    if claimed > most_unpacked(stored):
        raise CheckpointError(
            f"{source} has {stored} bytes and claims to hold {claimed}: it is damaged, or made to "
            "fill the memory"
        )


def most_unpacked(stored: int) -> int:
    """Bytes that `stored` bytes of weights may plausibly unpack to."""
    return 20 * stored + 2**26
