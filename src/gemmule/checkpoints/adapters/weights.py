"""The tensors in an adapter's weights file, by module and by what they are.

A tensor's name, as peft saves it, is `base_model.model.`, the module's name in transformers'
model, and one of the endings in _PARTS. Older versions left the adapter's name, `default`, in it.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from gemmule import files
from gemmule.checkpoints.adapters.config import MERGE
from gemmule.checkpoints.gemma_pytorch.reader import ArchivedRows
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.model_folder import ADAPTER
from gemmule.checkpoints.safetensors_file import MappedTensor, read_header
from gemmule.checkpoints.stored_tensor import StoredTensor
from gemmule.checkpoints.torch_archive import CODES, read_archive
from gemmule.errors import CheckpointError, brief

# What a tensor is to its module: a factor of the product B @ A, DoRA's magnitudes, the base's
# weight as it was trained on, the whole weight that was trained, or single rows of it.
A, B, MAGNITUDE, BASE, WHOLE, ROWS = "lora_A", "lora_B", "magnitudes", "base", "weight", "rows"
_WRAPPED, _UNUSED = "wrapped", "unused"
_PARTS = {
    "lora_A.weight": A,
    "lora_B.weight": B,
    "lora_embedding_A": A,
    "lora_embedding_B": B,
    "lora_magnitude_vector": MAGNITUDE,
    "lora_magnitude_vector.weight": MAGNITUDE,
    "base_layer.weight": BASE,
    "token_adapter.base_layer.weight": BASE,
    "token_adapter.trainable_tokens_delta": ROWS,
    "modules_to_save.weight": _WRAPPED,
    "original_module.weight": _UNUSED,
    "weight": WHOLE,
}
_ENDINGS = sorted(_PARTS, key=len, reverse=True)
# What other methods and models have, by the end of the name.
_REFUSED = {
    "bias": "Gemma 2 has no biases",
    "lora_diag": f"KaSA is not implemented: {MERGE}",
    "prompt_embeddings": "trained prompts cannot be merged",
    "score.weight": "a classifier is not a language model",
    "classifier.weight": "a classifier is not a language model",
}
# Parts of names that are no modules of the model: peft's, and those of wrappers around it.
_PREFIX = re.compile(r"(?:module\.)?(?:base_model\.model\.)?")
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "default"}

Parts = Mapping[str, StoredTensor]


def open_weights(folder: Path, stack: ExitStack) -> tuple[Path, dict[str, Parts]]:
    """Opens an adapter's weights.

    Args:
        folder: the adapter's folder.
        stack: closes the file.

    Returns:
        The file, and its tensors by module (such as "model.layers.0.mlp.up_proj") and part.

    Raises:
        CheckpointError: when the file is missing or broken, or holds more than an adapter.
    """
    path = _file(folder)
    modules: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in _open(stack.enter_context(MappedFile(path))):
        module, part = _parse(name, path)
        parts = modules.setdefault(module, {})
        if part in parts:
            raise CheckpointError(f"{path}: the {part} of {module} is stored twice")
        parts[part] = tensor
    for parts in modules.values():
        parts.pop(_UNUSED, None)
        wrapped = parts.pop(_WRAPPED, None)
        if wrapped is not None:
            parts.setdefault(WHOLE, wrapped)
    if not any(modules.values()):
        raise CheckpointError(f"{path} holds no tensors: save the adapter again")
    return path, {module: parts for module, parts in modules.items() if parts}


def _file(folder: Path) -> Path:
    names = (f"{ADAPTER}.safetensors", f"{ADAPTER}.bin")
    for name in names:
        path = folder / name
        if path.is_file():
            if files.is_lfs_pointer(path):
                raise CheckpointError(f"{path} is {files.LFS_POINTER}")
            return path
    there = sorted(p.name for p in folder.glob(f"{ADAPTER}.*"))
    raise CheckpointError(
        f"{folder} has no {' or '.join(names)}; it has {', '.join(there[:4]) or 'no weights'}"
    )


def _open(file: MappedFile) -> Sequence[tuple[str, StoredTensor]]:
    if file.path.suffix == ".bin":
        archived, _ = read_archive(file)
        odd = [name for name, tensor in archived.items() if tensor.dtype not in CODES]
        if odd:
            raise CheckpointError(f"{file.path}: {brief(odd[0])} is not stored as floats")
        return [
            (name, ArchivedRows(name, tensor, 0, tensor.shape[0], None))
            for name, tensor in archived.items()
        ]
    entries, data = read_header(file)
    return [(name, MappedTensor(file, name, entry, data)) for name, entry in entries.items()]


def _parse(name: str, path: Path) -> tuple[str, str]:
    """The module and the part that a tensor's name stands for."""
    kept = [part for part in name.split(".") if part not in _WRAPPERS]
    inside = _PREFIX.sub("", ".".join(kept), count=1)
    for ending, why in _REFUSED.items():
        if inside == ending or inside.endswith(f".{ending}"):
            raise CheckpointError(f"{path} holds {brief(name)}: {why}")
    for ending in _ENDINGS:
        if inside.endswith(f".{ending}"):
            return inside.removesuffix(f".{ending}"), _PARTS[ending]
    raise CheckpointError(
        f"{path} holds {brief(name)}, which is not part of a LoRA or DoRA adapter; {MERGE}"
    )
