"""Writes a quantized model as a folder in Hugging Face's layout."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import known
from gemmule.checkpoints.hf.config import to_hf
from gemmule.checkpoints.hf.writer import Entry, safetensors_layout, write_configs
from gemmule.checkpoints.packed.reader import MEASURED, METHOD, VERSION, QuantizedModel
from gemmule.checkpoints.safetensors_file import PREFIX
from gemmule.checkpoints.stored_tensor import tensor_bytes
from gemmule.checkpoints.tensor_layout import Advance, write
from gemmule.checkpoints.weight_files import SINGLE
from gemmule.quant.layout import PACKED

_CODES = {torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNED = 64


def save_quantized(
    model: QuantizedModel,
    folder: Path,
    advance: Advance = lambda _: None,
) -> None:
    """Writes `model` to `folder` in one atomic replacement.

    Args:
        model: the model to write.
        folder: the folder, created or replaced as a whole.
        advance: called with the size of every chunk written.

    Raises:
        OutputError: when the folder cannot be written.
    """
    with files.atomic_dir(folder) as tmp:
        write_into(model, tmp, advance)


def write_into(model: QuantizedModel, folder: Path, advance: Advance = lambda _: None) -> None:
    """Writes `model` into an empty folder, file by file."""
    write([safetensors_layout(SINGLE, _entries(model))], folder, advance)
    tokenizer = known(model.tokenizer)
    write_configs(config_json(model), tokenizer, folder)
    if tokenizer is not None:
        tokenizer.write_stamp(folder)
    if model.measured:
        files.write_json(folder / MEASURED, dict(model.measured))


def config_json(model: QuantizedModel) -> dict[str, Any]:
    """The content of config.json."""
    return {
        **to_hf(model.config, "float32", known(model.tokenizer)),
        "quantization_config": {
            "quant_method": METHOD,
            "version": VERSION,
            "format": model.format,
            "head": model.head,
            "bits_per_weight": round(model.bits_per_weight, 4),
        },
    }


def _entries(model: QuantizedModel) -> list[Entry]:
    """All tensors, in an order that aligns as many as possible."""
    tensors: dict[str, Tensor] = dict(model.norms)
    for name, matrix in model.matrices.items():
        packed = matrix.format in PACKED
        tensors[name.removesuffix("weight") + "qweight" if packed else name] = matrix.data
        if matrix.scales is not None:
            tensors[name.removesuffix("weight") + "scales"] = matrix.scales
    return [_entry(PREFIX + name, tensors[name]) for name in sorted(tensors, key=_order(tensors))]


def _order(tensors: Mapping[str, Tensor]) -> Any:
    """Sort key: first the tensors whose size keeps the next one aligned, then the widest dtypes."""
    return lambda name: (tensors[name].nbytes % _ALIGNED != 0, -tensors[name].dtype.itemsize, name)


def _entry(name: str, tensor: Tensor) -> Entry:
    code, shape = _CODES[tensor.dtype], tuple(tensor.shape)
    return Entry(name, code, shape, tensor.nbytes, partial(_chunks, tensor))


def _chunks(tensor: Tensor) -> list[memoryview]:
    return [tensor_bytes(tensor)]
