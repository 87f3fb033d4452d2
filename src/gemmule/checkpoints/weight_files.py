"""Which files of a folder hold the weights of a model in Hugging Face's layout."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gemmule import files
from gemmule.checkpoints.checkpoint import HEAD
from gemmule.checkpoints.hf.config import read_object
from gemmule.checkpoints.parameter_names import is_buffer, parameter_name
from gemmule.checkpoints.stored_tensor import few
from gemmule.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TORCH_SINGLE, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_INDEX_ENDING = ".index.json"
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_MAX_SHARDS = 10_000
# Files of tensors next to a model that are not its weights.
_NOT_WEIGHTS = re.compile(
    r"adapter_model\b.*|(?:optimizer|scheduler|scaler|rng_state\w*|training_args|state|imatrix)\b.*"
)
_INCOMPLETE = (".cache/huggingface/download/**/*.incomplete", "*.incomplete", "*.part", "*.aria2")


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a model's weights.

    Attributes:
        paths: the files, sorted.
        weight_map: path in the folder of each tensor's file, by the tensor's name in the file; None
            without an index.
        index: the index file, or None.
    """

    paths: tuple[Path, ...]
    weight_map: Mapping[str, str] | None = None
    index: Path | None = None

    def belongs(self, name: str, where: str) -> bool:
        """Whether the index says, or leaves open, that a tensor is in the file `where`."""
        return self.weight_map is None or self.weight_map.get(name) == where


def check_indexed(weights: WeightFiles, stored: Collection[str], folder: Path) -> None:
    """Checks that the files hold what their index names; a tied head and buffers may be missing.

    Raises:
        CheckpointError: when they lack weights.
    """
    lost = [
        name
        for name in weights.weight_map or ()
        if name not in stored and not is_buffer(name) and parameter_name(name) != HEAD
    ]
    if lost:
        raise CheckpointError(f"{folder}: the shards lack {few(lost)}; download them again")


def find_weights(path: Path, *, torch: bool = False) -> WeightFiles | None:
    """Finds the weights in a folder, or checks those in a file.

    In a folder the usual single file comes first, then an index, then a file or a complete set of
    numbered files under any other name.

    Args:
        path: a folder, or a file of weights.
        torch: look for torch's .bin files instead of safetensors.

    Returns:
        The files, or None when there are none in the folder.

    Raises:
        CheckpointError: when files are missing, cannot be told apart or are Git LFS pointers.
    """
    if not path.is_dir():
        return _there(path.parent, [path.name])
    single, index, ending = (
        (TORCH_SINGLE, TORCH_INDEX, ".bin") if torch else (SINGLE, INDEX, ".safetensors")
    )
    if (path / single).is_file():
        return _there(path, [single])
    indexes = sorted(p for p in path.glob(f"*{ending}{_INDEX_ENDING}") if p.is_file())
    if (path / index) in indexes or len(indexes) == 1:
        return _indexed(path, path / index if (path / index) in indexes else indexes[0])
    names = sorted(p.name for p in path.glob(f"*{ending}") if is_weights(p.name))
    if not names:
        return None
    numbered = [match for match in map(_NUMBERED.fullmatch, names) if match]
    if len(numbered) == len(names) and len({(m[1], m[3], m[4]) for m in numbered}) == 1:
        stem, _, count, suffix = numbered[0].groups()
        total = min(int(count), _MAX_SHARDS)
        return _there(path, [f"{stem}-{i:05}-of-{count}{suffix}" for i in range(1, total + 1)])
    if len(names) > 1:
        raise CheckpointError(
            f"{path} has no {single} and several other files of weights: name one, such as "
            f"{path / names[0]} (also {few(names[1:])})"
        )
    return _there(path, names)


def is_weights(name: str) -> bool:
    """Whether a file of this name may hold a model's weights: optimizer.bin and others do not."""
    return _NOT_WEIGHTS.fullmatch(name) is None


def is_numbered(name: str) -> bool:
    """Whether a file's name says that it is one of several, such as model-00001-of-00004.bin."""
    return _NUMBERED.fullmatch(name) is not None


def _indexed(folder: Path, index: Path) -> WeightFiles:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or not an object")
    shards = _there(folder, shard_names(weight_map, index))
    return WeightFiles(shards.paths, weight_map, index)


def shard_names(weight_map: Mapping[str, object], index: Path) -> list[str]:
    """The paths in an index, sorted and without duplicates.

    Raises:
        CheckpointError: for one that does not lie in the folder of the index or below it.
    """
    names: set[str] = set()
    for name in weight_map.values():
        if not isinstance(name, str) or not _inside(name):
            raise CheckpointError(f"{index}: {name!r} is not a file name in this folder")
        names.add(name)
    if len(names) > _MAX_SHARDS:
        raise CheckpointError(f"{index} names {len(names)} files; at most {_MAX_SHARDS} are read")
    return sorted(names)


def _inside(name: str) -> bool:
    """Whether a path is plain, relative and does not leave its folder."""
    parts = name.split("/")
    return not (set(parts) & {"", ".", ".."} or any(c in name for c in "\\:\0"))


def _there(folder: Path, names: Iterable[str]) -> WeightFiles:
    """These files, after checking that they are all there."""
    names = list(names)
    pointers, missing, empty = [], [], []
    for name in names:
        path = folder / name
        try:
            if not path.is_file():
                missing.append(name)
            elif path.stat().st_size == 0:
                empty.append(name)
            elif files.is_lfs_pointer(path):
                pointers.append(name)
        except (OSError, ValueError) as e:
            raise CheckpointError(f"cannot read {path}: {e}") from None
    if pointers:
        if len(names) == 1:
            raise CheckpointError(f"{folder / names[0]} is {files.LFS_POINTER}")
        raise CheckpointError(
            f"{folder}: {len(pointers)} of {len(names)} shards are Git LFS pointers, not the "
            f"files themselves ({few(pointers)}): run git lfs pull where it was cloned"
        )
    if len(names) > 1 and (missing or empty):  # the reader of a single file reports it
        absent = sorted(missing + empty)
        raise CheckpointError(
            f"{folder}: {len(absent)} of {len(names)} shards are missing"
            f"{' or empty' if empty else ''}: {few(absent)}; {_advice(folder)}"
        )
    return WeightFiles(tuple(folder / name for name in names))


def _advice(folder: Path) -> str:
    """How to get missing files."""
    unfinished = [p for pattern in _INCOMPLETE for p in folder.glob(pattern)]
    if unfinished:
        return (
            f"a download did not finish ({unfinished[0].relative_to(folder)}): run it again, "
            "complete files are kept"
        )
    return "download them again"
