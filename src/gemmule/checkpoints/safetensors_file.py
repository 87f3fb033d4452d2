"""Reads safetensors files: the header, and tensors as views of the mapped file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import safetensors
import torch
from torch import Tensor

from gemmule.checkpoints.file_kinds import SAFETENSORS, told_apart
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor
from gemmule.errors import CheckpointError

PREFIX = "model."


class MappedTensor(StoredTensor):
    """A tensor in a safetensors file.

    Attributes:
        codes: the dtypes that it can have, by safetensors' names.
    """

    codes: ClassVar[Mapping[str, torch.dtype]] = FLOATS

    def __init__(
        self,
        file: MappedFile,
        name: str,
        entry: Mapping[str, Any],
        data: int,
        our_name: str | None = None,
    ) -> None:
        """Checks the tensor's place in the file.

        Args:
            file: the file.
            name: name in the file.
            entry: the tensor's dtype, shape and data_offsets in the header.
            data: position of offset 0 in the file.
            our_name: name of our parameter; None: `name` without "model.".

        Raises:
            CheckpointError: when it is not of floats, or lies outside the file.
        """
        code, shape = entry["dtype"], entry["shape"]
        if code not in self.codes:
            raise CheckpointError(
                f"{file.path}: {name} is stored as {code}; supported are {', '.join(FLOATS)}"
            )
        start, stop = entry["data_offsets"]
        self._file, self._start, self._stored = file, data + start, self.codes[code]
        where = f"{file.path}: {name}"
        super().__init__(
            our_name or name.removeprefix(PREFIX), tuple(shape), self._stored, code, where
        )
        if not 0 <= start <= stop <= file.size - data or stop - start != self.nbytes:
            raise CheckpointError(f"{where} is outside the file; download it again")

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows as views of the mapped file."""
        if not self.numel:
            return
        row = self.numel // self.shape[0] * self._stored.itemsize
        for first in range(0, self.shape[0], self.rows_at_once):
            count = min(self.rows_at_once, self.shape[0] - first)
            start, stop = self._start + first * row, self._start + (first + count) * row
            yield self._file.view(start, stop, self._stored).view(count, *self.shape[1:])
            self._file.release(start, stop)


@dataclass(frozen=True)
class SafetensorsEntry:
    """A tensor in the header of a safetensors file.

    Attributes:
        file: the file.
        name: name in the file.
        entry: its dtype, shape and data_offsets in the header.
        data: position of offset 0 in the file.
    """

    file: MappedFile
    name: str
    entry: Mapping[str, Any]
    data: int

    @property
    def code(self) -> str:
        """Safetensors' name of the dtype."""
        return str(self.entry["dtype"])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self.entry["shape"])

    def tensor(self, our_name: str) -> MappedTensor:
        """The tensor under our name."""
        return MappedTensor(self.file, self.name, self.entry, self.data, our_name)

    def at_least_a_vector(self) -> MappedTensor:
        """The tensor under its own name; a scalar has the shape [1]."""
        entry = {**self.entry, "shape": self.shape or (1,)}
        return MappedTensor(self.file, self.name, entry, self.data, self.name)


def read_header(file: MappedFile) -> tuple[dict[str, dict[str, Any]], int]:
    """Reads the header of a safetensors file, after safetensors itself has checked it.

    Returns:
        The header's dtype, shape and data_offsets of each tensor by name, and the position in the
        file of offset 0.

    Raises:
        CheckpointError: when the file is not a safetensors file, or was cut short.
    """
    try:
        with safetensors.safe_open(file.path, framework="pt"):
            pass
        length = int.from_bytes(bytes(file.raw(0, 8).tolist()), "little")
        header = json.loads(bytes(file.raw(8, 8 + length).numpy()))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as e:
        raise CheckpointError(
            f"{file.path} is not a readable safetensors file, or was cut short"
            f"{told_apart(file.path, SAFETENSORS)}: {e}"
        ) from None
    header.pop("__metadata__", None)
    return header, 8 + length
