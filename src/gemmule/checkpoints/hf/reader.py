"""Reads models in Hugging Face's layout: config.json, safetensors and the tokenizer's files.

This is also the native format: training writes it to `model/`, and every command loads it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.hf.config import from_hf, read_object
from gemmule.checkpoints.locate import INDEX, SINGLE
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor, few
from gemmule.errors import CheckpointError
from gemmule.model.tokenizer import Tokenizer

PREFIX = "model."


def open_hf(folder: Path) -> Checkpoint:
    """Opens a folder with config.json, and model.safetensors or its sharded index.

    Raises:
        CheckpointError: for files that are missing, broken or of another architecture.
    """
    config = from_hf(read_object(folder / "config.json"), str(folder / "config.json"))
    checkpoint = Checkpoint(folder, "hf", config, {}, lambda: Tokenizer.load(folder))
    try:
        paths, expected = _weight_files(folder)
        stored: dict[str, StoredTensor] = {}
        for path in paths:
            for tensor in _open(checkpoint.stack.enter_context(MappedFile(path))):
                original = tensor.where.rpartition(" ")[2]
                if expected is not None and expected.get(original) != path.name:
                    raise CheckpointError(
                        f"{path}: {original} belongs in another file according to {INDEX}"
                    )
                if tensor.name in stored:
                    raise CheckpointError(f"{path}: {original} is stored twice")
                stored[tensor.name] = tensor
        if expected is not None and len(expected) != len(stored):
            lost = [name for name in expected if name.removeprefix(PREFIX) not in stored]
            raise CheckpointError(f"{folder}: the shards lack {few(lost)}; download them again")
    except BaseException:
        checkpoint.stack.close()
        raise
    checkpoint.tensors, checkpoint.files = stored, tuple(paths)
    return checkpoint


def _weight_files(folder: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The safetensors files and, if there is an index, the file name of each tensor."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE], None
    index_path = folder / INDEX
    if not index_path.exists():
        raise CheckpointError(f"no weights in {folder}: expected {SINGLE} or {INDEX}")
    expected = read_object(index_path).get("weight_map")
    if not isinstance(expected, dict) or not expected:
        raise CheckpointError(f"{index_path}: weight_map is missing or not an object")
    return [folder / name for name in shard_names(expected, index_path)], expected


def shard_names(weight_map: Mapping[str, object], index_path: Path) -> list[str]:
    """The file names in an index, sorted and without duplicates.

    Raises:
        CheckpointError: for a name that is not a plain file name.
    """
    for file in weight_map.values():
        if not isinstance(file, str) or file in {".", ".."} or Path(file).name != file:
            raise CheckpointError(f"{index_path}: {file!r} is not a file name in this folder")
    return sorted({str(file) for file in weight_map.values()})


class MappedTensor(StoredTensor):
    """A tensor in a safetensors file."""

    def __init__(self, file: MappedFile, name: str, entry: Mapping[str, Any], data: int) -> None:
        code, shape = entry["dtype"], entry["shape"]
        if code not in FLOATS:
            raise CheckpointError(
                f"{file.path}: {name} is stored as {code}; supported are {', '.join(FLOATS)}"
            )
        start, stop = entry["data_offsets"]
        self._file, self._start = file, data + start
        where = f"{file.path}: {name}"
        super().__init__(name.removeprefix(PREFIX), tuple(shape), FLOATS[code], code, where)
        if not 0 <= start <= stop <= file.size - data or stop - start != self.nbytes:
            raise CheckpointError(f"{where} is outside the file; download it again")

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows as views of the mapped file."""
        if not self.numel:
            return
        row = self.numel // self.shape[0] * self.dtype.itemsize
        for first in range(0, self.shape[0], self.rows_at_once):
            count = min(self.rows_at_once, self.shape[0] - first)
            start, stop = self._start + first * row, self._start + (first + count) * row
            yield self._file.view(start, stop, self.dtype).view(count, *self.shape[1:])
            self._file.release(start, stop)


def _open(file: MappedFile) -> list[MappedTensor]:
    entries, data = read_header(file)
    return [MappedTensor(file, name, entry, data) for name, entry in entries.items()]


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
            f"{file.path} is not a readable safetensors file, or was cut short: {e}"
        ) from None
    header.pop("__metadata__", None)
    return header, 8 + length
