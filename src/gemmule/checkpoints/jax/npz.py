"""Reads arrays from an .npz file, a zip archive of .npy files, stored or deflated.

numpy's own reader would unpickle, allocate whatever a header claims and hold a whole array. Here
every member is streamed, and its header must match its size.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO
from zipfile import ZipFile, ZipInfo

import torch
from numpy.lib import format as npy
from torch import Tensor

from gemmule.checkpoints.jax.arrays import StoredArray, max_unpacked, parse_array
from gemmule.checkpoints.stored_tensor import tensor_bytes
from gemmule.checkpoints.zip_archive import READ_BYTES, checked_members
from gemmule.errors import CheckpointError, first_line

_HEADER_BYTES = 2**14  # numpy itself accepts at most 10,000
_SUFFIX = ".npy"


def read_npz(archive: ZipFile, path: Path) -> dict[str, StoredArray]:
    """The arrays of an open archive by name.

    Raises:
        CheckpointError: for members that are not .npy files of floats, or whose size does not match
            their header.
    """
    members = checked_members(archive, path, max_unpacked(path.stat().st_size), deflated=True)
    return {m.filename.removesuffix(_SUFFIX): _NpzArray(archive, m, path) for m in members}


class _NpzArray(StoredArray):
    def __init__(self, archive: ZipFile, member: ZipInfo, path: Path) -> None:
        self._archive, self._member = archive, member
        where = f"{path}: {member.filename.removesuffix(_SUFFIX)}"
        start = io.BytesIO(self._head(where))
        try:
            version = npy.read_magic(start)
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
            shape, self._columns_first, dtype = read(start)
        except (
            Exception
        ) as e:  # numpy evaluates the header, which fails in as many ways as text can
            raise CheckpointError(f"{where} is not a .npy file ({first_line(e)})") from None
        super().__init__(*parse_array(shape, dtype.str, where), where)
        self._start = start.tell()
        if self._start + self.nbytes != member.file_size:
            raise CheckpointError(
                f"{where} claims {list(shape)} of {dtype}, which is not the "
                f"{member.file_size - self._start} bytes it has; the file is damaged"
            )

    def _head(self, where: str) -> bytes:
        try:
            with self._archive.open(self._member) as f:
                return f.read(_HEADER_BYTES)
        except Exception as e:  # see _fill
            raise CheckpointError(f"{where} is damaged: {first_line(e)}") from None

    def runs(self, first: int, counts: Iterable[int]) -> Iterator[Tensor]:
        """Yields consecutive runs; an array in column-major order is held as a whole meanwhile."""
        if self._columns_first and len(self.shape) > 1:
            (flat,) = self._stored_runs(0, [torch.Size(self.shape).numel()])
            x = flat.view(self.shape[::-1]).permute(*reversed(range(len(self.shape)))).flatten()
            for count in counts:
                yield x[first : first + count]
                first += count
        else:
            yield from self._stored_runs(first, counts)

    def _stored_runs(self, first: int, counts: Iterable[int]) -> Iterator[Tensor]:
        with self._archive.open(self._member) as f:
            left = self._start + first * self.dtype.itemsize
            while left:
                skipped = torch.empty(min(left, READ_BYTES), dtype=torch.uint8)
                self._fill(skipped, f)
                left -= len(skipped)
            for count in counts:
                run = torch.empty(count, dtype=self.dtype)
                self._fill(run, f)
                yield run

    def _fill(self, x: Tensor, f: IO[bytes]) -> None:
        into = tensor_bytes(x)
        for at in range(0, len(into), READ_BYTES):
            part = into[at : at + READ_BYTES]
            try:
                data = f.read(len(part))
            except Exception as e:  # zlib, zipfile and the checksum raise different errors
                raise CheckpointError(
                    f"{self.where} is damaged ({first_line(e)}); download it again"
                ) from None
            if len(data) != len(part):
                raise CheckpointError(f"{self.where} was cut short; download it again")
            part[:] = data
