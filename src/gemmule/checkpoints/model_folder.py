"""Tells which model a folder holds, by the names of its files and, where those vary, by content."""

import re
from pathlib import Path

from gemmule.checkpoints import hub_cache
from gemmule.checkpoints.file_kinds import FileKind, kind_of
from gemmule.checkpoints.stored_tensor import few
from gemmule.checkpoints.weight_files import (
    INDEX,
    SINGLE,
    TORCH_INDEX,
    TORCH_SINGLE,
    is_numbered,
    is_weights,
)
from gemmule.errors import CheckpointError

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model"
# Any of these marks a folder that orbax wrote.
_ORBAX = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")
_TEXT = {
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".py",
    ".toml",
    ".yaml",
    ".yml",
    ".jinja",
    ".csv",
    ".log",
}
# GGUF files that are not a language model, and parts of a split one after the first.
_BESIDES = re.compile(r".*mmproj.*|.*imatrix.*|.*-(?!00001-of-)\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
_DEEPSPEED = "zero_to_fp32.py"
_SHARDED = "*/*.distcp"  # transformers puts FSDP's shards into a folder of their own


def in_folder(folder: Path) -> tuple[str, Path] | None:
    """The format and path of the model whose files are in `folder` itself, or None.

    Raises:
        CheckpointError: when there are several, or files of a kind that cannot be read.
    """
    if not folder.is_dir():
        return None
    names = [p.name for p in folder.iterdir() if p.is_file()]
    marks = {
        # First: the base of an adapter may be in the same folder.
        "adapter": ADAPTER_CONFIG in names and any(_is_of_adapter(name) for name in names),
        "hf": any(_is_safetensors(name) for name in names),
        "torch": any(_is_torch(name) for name in names),
        "orbax": any((folder / name).exists() for name in _ORBAX),
    }
    for format, is_there in marks.items():
        if is_there:
            return format, folder
    single, others = _single_files(folder, names)
    if len(single) > 1:
        paths = [path for path, _ in single]
        raise CheckpointError(
            f"{folder} holds several models: name one, such as {paths[0]} (also "
            f"{few([path.name for path in paths[1:]])})"
        )
    for path, kind in single:
        assert kind.format is not None
        return kind.format, path
    _refuse(folder, names, others)
    # A config alone is a model or adapter without weights, which the reader reports.
    if ADAPTER_CONFIG in names:
        return "adapter", folder
    return ("hf", folder) if "config.json" in names else None


def _is_of_adapter(name: str) -> bool:
    """Whether a file has an adapter's weights; adapters.safetensors is MLX's, which is refused."""
    return name.startswith(f"{ADAPTER}.") or name == "adapters.safetensors"


def _is_safetensors(name: str) -> bool:
    ending = name.endswith((".safetensors", ".safetensors.index.json"))
    return name in {SINGLE, INDEX} or (ending and is_weights(name))


def _is_torch(name: str) -> bool:
    return name in {TORCH_SINGLE, TORCH_INDEX} or (
        name.startswith("pytorch_model") and name.endswith(".bin") and is_numbered(name)
    )


def _single_files(
    folder: Path, names: list[str]
) -> tuple[list[tuple[Path, FileKind]], list[tuple[Path, FileKind]]]:
    """Files that each are a model, and files of kinds that cannot be read."""
    single, others = [], []
    for name in sorted(names):
        path = folder / name
        if path.suffix.lower() in _TEXT or not is_weights(name) or _BESIDES.fullmatch(name):
            continue
        kind = kind_of(path)
        if kind and kind.format:
            single.append((path, kind))
        elif kind:
            others.append((path, kind))
    return single, others


def _refuse(folder: Path, names: list[str], others: list[tuple[Path, FileKind]]) -> None:
    """Names what is there instead of a model that can be read."""
    if _DEEPSPEED in names:
        raise CheckpointError(
            f"{folder} is a checkpoint of DeepSpeed: run {_DEEPSPEED} in it (python {_DEEPSPEED} . "
            "OUT --safe_serialization) and give its output"
        )
    broken = hub_cache.broken_links(folder)
    if broken:
        raise CheckpointError(
            f"{folder} holds links to files that are not there ({few(broken)}): its download did "
            "not finish; run it again"
        )
    others += [(path, kind) for path in sorted(folder.glob(_SHARDED)) if (kind := kind_of(path))]
    large = [(path, kind) for path, kind in others if path.suffix != ".zip"]
    if large:
        path, kind = large[0]
        raise CheckpointError(f"{path} is {kind.what}: {kind.advice}")
