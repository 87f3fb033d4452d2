"""A memory-mapped file, read only where it is accessed."""

import mmap
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from gemmule.checkpoints.huge_pages import HugePages
from gemmule.errors import CheckpointError

_DONT_NEED = getattr(mmap, "MADV_DONTNEED", -1)
# Reads all pages at once rather than a few per page fault; Linux 5.14, without a name in Python.
_POPULATE_READ = 22 if sys.platform == "linux" else -1


class MappedFile:
    """A memory-mapped file whose pages leave this process's memory once they are released.

    Attributes:
        path: the file.
        size: size in bytes.
        huge_pages: turns the file's pages into huge ones where tensors stay views of it.
    """

    def __init__(self, path: Path) -> None:
        """Maps the file.

        Raises:
            CheckpointError: when it is missing, empty or cannot be read.
        """
        self.path = path
        try:
            with path.open("rb") as f:
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise CheckpointError(f"no {path.name} in {path.parent}; download it again") from None
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{path} cannot be read, or was cut short: {e}") from None
        self.size = len(self._map)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self.huge_pages = HugePages(self._map, self._bytes.data_ptr())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        del self._bytes  # tensors that still refer to the file keep it mapped

    def raw(self, start: int, stop: int) -> Tensor:
        """Bytes [start, stop) of the file, without a copy; must not be modified."""
        assert 0 <= start <= stop <= self.size
        if stop - start > mmap.PAGESIZE:
            self._advise(_POPULATE_READ, start, stop)
        return self._bytes[start:stop]

    def view(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Bytes [start, stop) as a flat tensor; a copy only if they are not aligned."""
        raw = self.raw(start, stop)
        return (raw if start % dtype.itemsize == 0 else raw.clone()).view(dtype)

    def prefer_huge_pages(self) -> None:
        """Has what is not in memory yet read into huge pages, where the file system has them."""
        self._advise(getattr(mmap, "MADV_HUGEPAGE", -1), 0, self.size)

    def release(self, start: int, stop: int) -> None:
        """Releases the pages of [start, stop), which stay in the system's cache."""
        self._advise(_DONT_NEED, start, stop)

    def _advise(self, advice: int, start: int, stop: int) -> None:
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        with suppress(AttributeError, OSError):  # some systems lack madvise
            if stop > first:
                self._map.madvise(advice, first, stop - first)
