"""Says what a file or folder is, whether it can be loaded or not, from names, sizes and headers."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.checkpoints import hub_cache, other_quantizations
from gemmule.checkpoints.describe import bytes_of
from gemmule.checkpoints.file_kinds import GGUF, SAFETENSORS, FileKind, kind_of
from gemmule.checkpoints.gguf.header import Header, parse_header
from gemmule.checkpoints.hf.config import read_object
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.model_folder import ADAPTER_CONFIG
from gemmule.checkpoints.other_models import model_type_of
from gemmule.checkpoints.safetensors_file import read_header
from gemmule.errors import CheckpointError

_MAX_FILES = 1000


def identify(path: str | Path) -> dict[str, Any] | None:
    """Describes what is at a path, for `gemmule info` where `describe` refuses it.

    Returns:
        A JSON object, or None when nothing there can be told: path; loads (False); kind;
        architecture, quantization and base (of an adapter), each None when nothing tells; files
        (sizes in bytes); tensors and parameters (counted in headers that can be read, else None).
    """
    place = files.expand(path)
    try:
        if place.is_dir():
            place = hub_cache.snapshot_of(place) or place
        elif not place.is_file():
            return None
    except (CheckpointError, OSError, ValueError):
        return None
    paths = [place]
    if place.is_dir():
        paths = sorted(p for p in place.iterdir() if p.is_file())[:_MAX_FILES]
    kinds = {p: kind for p in paths if (kind := _kind(p)) is not None}
    folder = place if place.is_dir() else place.parent
    config, adapter = _json(folder / "config.json"), _json(folder / ADAPTER_CONFIG)
    if not kinds and not config and not adapter:
        return None
    headers = [header for p, kind in kinds.items() if (header := _gguf_header(p, kind))]
    metadata = headers[0].metadata if headers else {}
    counts = [math.prod(info.shape) for header in headers for info in header.tensors]
    counts += [n for p, kind in kinds.items() for n in _safetensors_sizes(p, kind)]
    return {
        "path": str(place),
        "loads": False,
        "kind": _what(place, list(kinds.values()), config, adapter),
        "architecture": _text(metadata.get("general.architecture")) or model_type_of(config),
        "quantization": other_quantizations.method_of(config),
        "base": _text(adapter.get("base_model_name_or_path")),
        "files": {p.name: p.stat().st_size for p in kinds},
        "tensors": len(counts) or None,
        "parameters": sum(counts) or None,
    }


def lines(about: Mapping[str, Any]) -> list[list[str]]:
    """The result of `identify` as rows of a table: label and value."""
    size = sum(about["files"].values())
    rows = [
        ["what it is", about["kind"]],
        ["architecture", about["architecture"]],
        ["quantization", about["quantization"]],
        ["base model", about["base"]],
        ["on disk", f"{bytes_of(size)} in {len(about['files'])} file(s)"],
        ["tensors", about["tensors"] and f"{about['tensors']:,}"],
        ["numbers in them", about["parameters"] and f"{about['parameters']:,}"],
        ["loads", "no"],
    ]
    return [[label, value] for label, value in rows if value]


def _kind(path: Path) -> FileKind | None:
    with suppress(CheckpointError):
        return kind_of(path)
    return None


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty when it is missing or broken, which a reader reports."""
    with suppress(CheckpointError):
        return read_object(path)
    return {}


def _what(
    place: Path, kinds: list[FileKind], config: Mapping[str, Any], adapter: Mapping[str, Any]
) -> str:
    if place.is_file():
        return kinds[0].what if kinds else "a file of an unknown kind"
    held = ", ".join(sorted({kind.what for kind in kinds}))
    if adapter:
        kind = _text(adapter.get("peft_type"))
        return f"a folder with an adapter of peft{f' ({kind})' if kind else ''}"
    name = "a model in Hugging Face's layout" if config else "a folder without a config.json"
    return f"{name}, with {held}" if held else f"{name}, without weights"


def _text(value: object) -> str | None:
    return value[:200] if isinstance(value, str) else None


def _gguf_header(path: Path, kind: FileKind) -> Header | None:
    if kind is GGUF:
        with suppress(CheckpointError), MappedFile(path) as file:
            return parse_header(file.raw(0, file.size).numpy().data, str(path))
    return None


def _safetensors_sizes(path: Path, kind: FileKind) -> Iterable[int]:
    """The number of values in each tensor of a file whose header can be read."""
    if kind is SAFETENSORS:
        with suppress(CheckpointError), MappedFile(path) as file:
            return [math.prod(entry["shape"]) for entry in read_header(file)[0].values()]
    return []
