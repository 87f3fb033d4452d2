"""Reads models in Hugging Face's layout: config.json, safetensors and the tokenizer's files.

This is also the native format: training writes it to `model/`, and every command loads it.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from gemmule.checkpoints import other_quantizations
from gemmule.checkpoints.checkpoint import SCORE, Checkpoint
from gemmule.checkpoints.hf import fp8
from gemmule.checkpoints.hf.config import from_hf, read_object, without_score
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.parameter_names import Names, parameter_names
from gemmule.checkpoints.safetensors_file import SafetensorsEntry, read_header
from gemmule.checkpoints.shapes import check_own_head, config_of_shapes, tokenizer_in
from gemmule.checkpoints.stored_tensor import StoredTensor, few
from gemmule.checkpoints.weight_files import (
    INDEX,
    SINGLE,
    WeightFiles,
    check_indexed,
    find_weights,
)
from gemmule.errors import CheckpointError
from gemmule.model.config import GemmaConfig


def open_hf(path: Path, *, score: bool = False) -> Checkpoint:
    """Opens a folder with safetensors, or one safetensors file.

    The config comes from the folder's config.json, or else from the published size with these
    shapes.

    Args:
        path: folder or file.
        score: open a reward model; else a language model.

    Raises:
        CheckpointError: for files that are missing, broken or of another architecture.
    """
    folder = path.parent if path.is_file() else path
    file = folder / "config.json"
    values = read_object(file) if file.is_file() or score else None
    if score:
        values = without_score(values or {}, str(file))
    config = None if values is None else _config(values, file)
    with ExitStack() as stack:
        weights = find_weights(path) if path.exists() else None
        if weights is None:
            also = "" if config else "no config.json and "
            raise CheckpointError(f"{also}no weights in {folder}: expected {SINGLE} or {INDEX}")
        stored = _entries(weights, folder, stack)
        head = _score(stored, path) if score else None
        names = _names(stored, str(path))
        if config is None:
            config = _config_of_shapes(names, stored, path)
        check_own_head(folder, names.ours.values())
        block = fp8.block_size(values or {})
        tensors = {
            our: _tensor(our, stored[name], stored, block) for name, our in names.ours.items()
        }
        return Checkpoint(
            path,
            "hf",
            config,
            tensors,
            partial(tokenizer_in, folder),
            weights.paths,
            (*names.notes, *_notes(weights, stored, folder)),
            stack.pop_all(),
            score=head,
        )


def _score(stored: dict[str, SafetensorsEntry], path: Path) -> StoredTensor:
    """The head of a reward model, which is taken out of the other weights."""
    if SCORE not in stored:
        raise CheckpointError(f"{path}: the weights lack {SCORE}, the head of a reward model")
    head = stored.pop(SCORE).tensor(SCORE)
    if len(head.shape) != 2 or head.shape[0] != 1:
        raise CheckpointError(f"{path}: {SCORE} has shape {list(head.shape)}, not one row")
    return head


def _config(values: dict[str, Any], file: Path) -> GemmaConfig:
    if fp8.is_fp8(values):
        values = {name: v for name, v in values.items() if name != "quantization_config"}
    return from_hf(values, str(file))


def _config_of_shapes(
    names: Names, stored: Mapping[str, SafetensorsEntry], path: Path
) -> GemmaConfig:
    """The config of weights that come without one."""
    shapes = {our: stored[name].shape for name, our in names.ours.items()}
    try:
        return config_of_shapes(shapes, str(path))
    except CheckpointError as e:
        folder = path if path.is_dir() else path.parent
        raise CheckpointError(f"no config.json in {folder}: {e}") from None


def _names(stored: Mapping[str, SafetensorsEntry], source: str) -> Names:
    """Our names of the stored weights; scales belong to weights."""
    method = other_quantizations.method_of_names(stored)
    if method:
        raise other_quantizations.refusal(method, source)
    scales = {fp8.scale_name(name, stored) for name, e in stored.items() if e.code in fp8.FP8}
    return parameter_names(
        {
            name: entry.shape
            for name, entry in stored.items()
            if name not in scales and not fp8.is_activation_scale(name)
        },
        source,
    )


def _tensor(
    name: str,
    entry: SafetensorsEntry,
    stored: Mapping[str, SafetensorsEntry],
    block: tuple[int, int] | None,
) -> StoredTensor:
    """The tensor under our name; one in fp8 with its scales."""
    if entry.code not in fp8.FP8:
        return entry.tensor(name)
    beside = fp8.scale_name(entry.name, stored)
    scales = stored[beside].at_least_a_vector() if beside else None
    return fp8.Fp8Tensor(entry, name, scales, block)


def _notes(weights: WeightFiles, stored: Mapping[str, SafetensorsEntry], folder: Path) -> list[str]:
    """Remarks on what was left out."""
    notes = []
    lost = [name for name in weights.weight_map or () if name not in stored]
    if lost:
        notes.append(
            f"the index names {few(lost)}, which no shard holds and the model does not need"
        )
    torch_files = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
    if torch_files:
        notes.append(f"left out: {few(torch_files)}, since the safetensors are read")
    unused = [name for name in stored if fp8.is_activation_scale(name)]
    if unused:
        notes.append(f"left out: {len(unused)} scales of quantized activations, which are not here")
    return notes


def _entries(weights: WeightFiles, folder: Path, stack: ExitStack) -> dict[str, SafetensorsEntry]:
    """The tensors of all files by their names there, checked against the index."""
    stored: dict[str, SafetensorsEntry] = {}
    for path in weights.paths:
        file = stack.enter_context(MappedFile(path))
        header, data = read_header(file)
        for name, entry in header.items():
            if name in stored:
                raise CheckpointError(f"{path}: {name} is stored twice")
            if not weights.belongs(name, path.relative_to(folder).as_posix()):
                raise CheckpointError(
                    f"{path}: {name} belongs in another file according to {weights.index}"
                )
            stored[name] = SafetensorsEntry(file, name, entry, data)
    check_indexed(weights, stored, folder)
    return stored
