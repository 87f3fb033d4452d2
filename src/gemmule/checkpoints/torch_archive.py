"""Reads the files of torch.save: a zip archive of a pickle and of raw storages.

The pickle (see weights_pickle.py) describes the tensors, whose numbers are read in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor

from gemmule.checkpoints.file_kinds import TORCH, told_apart
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.stored_tensor import FLOATS, dtype_name
from gemmule.checkpoints.weights_pickle import unpickle
from gemmule.checkpoints.zip_archive import READ_BYTES, checked_members, data_start, opened_zip
from gemmule.errors import CheckpointError, first_line

CODES = {dtype: code for code, dtype in FLOATS.items()}
# Under one of these names trainers put the state dict; the first is gemma_pytorch's.
_UNDER = ("model_state_dict", "state_dict", "model", "module")


@dataclass(frozen=True)
class ArchivedTensor:
    """A tensor in a torch file.

    Attributes:
        file: the file.
        name: name in the file.
        start: offset of its first byte in the file.
        shape: shape.
        dtype: a float dtype, or int8.
    """

    file: MappedFile
    name: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def where(self) -> str:
        """File and name, for messages."""
        return f"{self.file.path}: {self.name}"

    def rows(self, first: int, count: int) -> tuple[int, int]:
        """The first byte of these rows, and the end of the last one."""
        row = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        return self.start + first * row, self.start + (first + count) * row


def read_archive(
    file: MappedFile, skip: Callable[[str], bool] = lambda _: False
) -> tuple[dict[str, ArchivedTensor], object]:
    """Reads the description of the tensors in a torch file.

    Args:
        file: the file.
        skip: tells by a tensor's name whether it is left out, whatever its shape and dtype.

    Returns:
        The tensors by their names in the file, and the file's value of "config" or None.

    Raises:
        CheckpointError: when torch.save did not write it, or it holds more than weights.
    """
    path = file.path
    if bytes(file.raw(0, min(4, file.size)).tolist()) != b"PK\3\4":
        raise CheckpointError(
            f"{path} is not the zip archive that torch.save has written since torch 1.6"
            f"{told_apart(path, TORCH)}. Older formats cannot be read: if you trust the file, load "
            "it with torch.load(path, weights_only=True) and write it again with torch.save"
        )
    with opened_zip(path) as archive:
        members = checked_members(archive, path, file.size, deflated=False)
        records = {m.filename.partition("/")[2]: m for m in members}
        if "data.pkl" not in records or len(records) != len(members):
            raise CheckpointError(f"{path} is a zip archive that torch.save did not write")
        order = _content(archive, records.get("byteorder"), path)
        if order not in {b"", b"little"}:
            raise CheckpointError(f"{path} was written on a machine with another byte order")
        pickled = _content(archive, records["data.pkl"], path)
        storages = {
            name: (data_start(archive, member, path), member.file_size)
            for name, member in records.items()
            if name.startswith("data/")
        }
    value, starts = unpickle(pickled, storages, path)
    outer: dict[Any, Any] = value if isinstance(value, dict) else {}
    under = (outer[key] for key in _UNDER if not isinstance(outer.get(key), Tensor | None))
    weights = next(under, outer)
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(
            f"{path} does not hold a state dict: expected tensors by name, directly or under "
            "'model_state_dict'"
        )
    tensors = {}
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is of type {type(tensor).__name__}; expected tensors by name"
            )
        if not skip(name):
            storage = starts.get(getattr(tensor.untyped_storage(), "_checkpoint_offset", -1), "")
            tensors[name] = _archived(file, name, tensor, *storages.get(storage, (0, 0)))
    return tensors, outer.get("config")


def _archived(file: MappedFile, name: str, tensor: Tensor, start: int, size: int) -> ArchivedTensor:
    """Checks a tensor without data against its storage in the file."""
    if tensor.dtype not in CODES and tensor.dtype != torch.int8:
        raise CheckpointError(
            f"{file.path}: {name} is stored as {dtype_name(tensor.dtype)}; supported are int8 and "
            f"{', '.join(map(dtype_name, CODES))}"
        )
    first = int(tensor.storage_offset()) * tensor.dtype.itemsize
    last = first + tensor.numel() * tensor.dtype.itemsize
    # A view that repeats elements would be larger than its storage.
    if not tensor.is_contiguous() or tensor.ndim not in {1, 2} or not 0 <= first < last <= size:
        raise CheckpointError(
            f"{file.path}: {name} {list(tensor.shape)} is not a contiguous matrix or vector in its "
            f"storage of {size} bytes; save it again with .contiguous(), or download it again"
        )
    return ArchivedTensor(file, name, start + first, tuple(tensor.shape), tensor.dtype)


def _content(archive: ZipFile, member: ZipInfo | None, path: Path) -> bytes:
    """The bytes of a small member; empty if there is no such member."""
    if member is None:
        return b""
    if member.file_size > READ_BYTES:
        raise CheckpointError(
            f"{path}: {member.filename!r} has {member.file_size} bytes; the description of a model "
            f"has at most {READ_BYTES}"
        )
    try:
        return archive.read(member)
    except Exception as e:  # a damaged archive can break zipfile in any way
        raise CheckpointError(f"{path} is damaged ({first_line(e)}); download it again") from None
