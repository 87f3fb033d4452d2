"""The files of a GGUF model: one, or the parts that llama-gguf-split made of it.

Each part is a GGUF file of its own with the keys split.no, split.count and split.tensors.count, and
the first has the model's metadata (facts read from llama.cpp's tools/gguf-split/gguf-split.cpp).
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gemmule import files
from gemmule.checkpoints.gguf.header import Header, TensorInfo, parse_header
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.stored_tensor import few
from gemmule.errors import CheckpointError

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_MAX_PARTS = 1000


@dataclass(frozen=True)
class Part:
    """An open GGUF file."""

    file: MappedFile
    header: Header


def open_parts(path: Path, stack: ExitStack) -> list[Part]:
    """Opens a GGUF file, and with any part of a split model all of them, the first one first.

    Raises:
        CheckpointError: when a file is not a GGUF file, or parts are missing or do not belong
            together.
    """
    part = _open(path, stack)
    count = _integer(part, COUNT)
    if count is None or count <= 1:
        return [part]
    own = part.file.path
    paths = _paths(own, count)
    parts = [part if p.name == own.name else _open(p, stack) for p in paths]
    for number, each in enumerate(parts):
        if (_integer(each, NO), _integer(each, COUNT)) != (number, count):
            raise CheckpointError(
                f"{each.file.path} is not part {number + 1} of {count} by its keys {NO} and "
                f"{COUNT}: it belongs to another model, or was renamed"
            )
    tensors = [info.name for each in parts for info in each.header.tensors]
    expected = _integer(parts[0], TENSORS)
    if len(set(tensors)) < len(tensors) or expected not in {None, len(tensors)}:
        raise CheckpointError(
            f"{paths[0]}: the {count} parts hold {len(tensors)} tensors, {len(set(tensors))} of "
            f"them different, and should hold {expected}: they are not of one model"
        )
    return parts


def tensors_of(parts: list[Part]) -> list[tuple[MappedFile, TensorInfo]]:
    """The tensors of all parts, each with its file."""
    return [(part.file, info) for part in parts for info in part.header.tensors]


def _open(path: Path, stack: ExitStack) -> Part:
    file = stack.enter_context(MappedFile(path))
    header = parse_header(file.raw(0, file.size).numpy().data, str(path))
    file.release(0, header.nbytes)
    return Part(file, header)


def _integer(part: Part, key: str) -> int | None:
    value = part.header.metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CheckpointError(f"{part.file.path}: {key} is not a count")
    return value


def _paths(path: Path, count: int) -> list[Path]:
    """The paths of all parts, after checking that they are there."""
    match = _NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count or count > _MAX_PARTS:
        raise CheckpointError(
            f"{path} is one of {count} parts of a model, and its name does not tell the others': "
            f"rename them to NAME-00001-of-{count:05}.gguf and so on"
        )
    names = [f"{match[1]}-{i:05}-of-{match[3]}{match[4]}" for i in range(1, count + 1)]
    paths = [path.with_name(name) for name in names]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent}: {len(missing)} of {count} parts of {match[1]} are missing: "
            f"{few(missing)}; download them to the same folder"
        )
    for p in paths:
        if files.is_lfs_pointer(p):
            raise CheckpointError(f"{p} is {files.LFS_POINTER}")
    return paths
