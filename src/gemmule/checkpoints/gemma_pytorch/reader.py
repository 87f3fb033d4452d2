"""Reads files of torch.save: gemma_pytorch's .ckpt and shards, and state dicts of transformers.

Facts read from gemma_pytorch's gemma/model.py: torch.save of `{"model_state_dict": ...}`, or shards
with plain state dicts; q, k and v are one matrix, with their rows in that order; an int8 weight is
multiplied by `weight_scaler`, one per row. transformers' pytorch_model.bin is a plain state dict
with the names of its safetensors.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gemmule.checkpoints import other_quantizations
from gemmule.checkpoints.checkpoint import EMBEDDING as OUR_EMBEDDING
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.hf.config import from_hf
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.parameter_names import GEMMA_PYTORCH_EMBEDDING as EMBEDDING
from gemmule.checkpoints.parameter_names import Names, is_buffer, parameter_names
from gemmule.checkpoints.shapes import (
    check_own_head,
    config_beside,
    config_of_shapes,
    tokenizer_beside,
)
from gemmule.checkpoints.stored_tensor import StoredTensor, dtype_name
from gemmule.checkpoints.torch_archive import CODES, ArchivedTensor, read_archive
from gemmule.checkpoints.weight_files import TORCH_SINGLE, WeightFiles, check_indexed, find_weights
from gemmule.errors import CheckpointError
from gemmule.model.config import GemmaConfig

FUSED = "self_attn.qkv_proj.weight"
SCALER = "_scaler"


def open_torch(path: Path) -> Checkpoint:
    """Opens a .ckpt, .bin or .pth file, or a folder with pytorch_model.bin or shards and an index.

    The config comes from a config.json next to it, or else from the file itself, where our writer
    puts one, or else from the published size with these shapes.

    Raises:
        CheckpointError: for files that are missing, broken, hostile or of another architecture.
    """
    with ExitStack() as stack:
        weights = find_weights(path, torch=True)
        if weights is None:
            raise CheckpointError(f"no weights in {path}: expected {TORCH_SINGLE} or its index")
        config = config_beside(path)  # first: another model's is refused by name
        raw, names, inner = _read(weights, path, stack)
        by_name = {our: raw[name] for name, our in names.ours.items()}
        config = (
            config
            or _inner_config(inner, path)
            or config_of_shapes(
                {_ours(name): tensor.shape for name, tensor in by_name.items()}, str(path)
            )
        )
        check_own_head(path, by_name)
        return Checkpoint(
            path,
            "gemma_pytorch" if EMBEDDING in raw or any(map(_is_fused, raw)) else "torch",
            config,
            _parameters(by_name, config, path),
            partial(tokenizer_beside, path),
            weights.paths,
            names.notes,
            stack.pop_all(),
        )


def _read(
    weights: WeightFiles, path: Path, stack: ExitStack
) -> tuple[dict[str, ArchivedTensor], Names, object]:
    """The tensors of all files by their names there, our names, and the config in the last file."""
    folder = path if path.is_dir() else path.parent
    raw: dict[str, ArchivedTensor] = {}
    inner: object = None
    for file in weights.paths:
        tensors, inner = read_archive(stack.enter_context(MappedFile(file)), skip=is_buffer)
        where = file.relative_to(folder).as_posix()
        for name, tensor in tensors.items():
            if name in raw or not weights.belongs(name, where):
                raise CheckpointError(
                    f"{file}: {name} belongs in another file according to {weights.index}"
                )
            raw[name] = tensor
    check_indexed(weights, raw, folder)
    method = other_quantizations.method_of_names(raw)
    if method:
        raise other_quantizations.refusal(method, str(path))
    names = parameter_names({name: tensor.shape for name, tensor in raw.items()}, str(path))
    return raw, names, inner


def _ours(name: str) -> str:
    """Our name of the embedding, which gemma_pytorch calls otherwise; any other as it is."""
    return OUR_EMBEDDING if name == EMBEDDING else name


def _is_fused(name: str) -> bool:
    return name.endswith(FUSED)


class ArchivedRows(StoredTensor):
    """Some rows of a stored tensor; int8 ones are multiplied by their scalers, in float32."""

    def __init__(
        self, name: str, raw: ArchivedTensor, first: int, count: int, scaler: ArchivedTensor | None
    ) -> None:
        self._raw, self._first, self._scaler = raw, first, scaler
        # Wide enough for an exact product with a bfloat16 scaler.
        dtype = torch.promote_types(torch.float32, scaler.dtype) if scaler else raw.dtype
        form = "I8" if scaler else CODES[dtype]
        super().__init__(name, (count, *raw.shape[1:]), dtype, form, raw.where)

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, multiplied by their scalers if there are any."""
        raw, total = self._raw, self.shape[0]
        for first in range(0, total, self.rows_at_once):
            count = min(self.rows_at_once, total - first)
            start, stop = raw.rows(self._first + first, count)
            rows = raw.file.view(start, stop, raw.dtype).view(count, *raw.shape[1:])
            if self._scaler:
                scaler = self._scaler
                where = scaler.rows(self._first + first, count)
                rows = rows * scaler.file.view(*where, scaler.dtype).to(self.dtype)[:, None]
            yield rows
            raw.file.release(start, stop)


def _parameters(
    raw: Mapping[str, ArchivedTensor], config: GemmaConfig, source: Path
) -> dict[str, StoredTensor]:
    """The tensors under our names: q, k and v separated, scalers combined with their weights."""
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    parameters: dict[str, StoredTensor] = {}
    for name, tensor in raw.items():
        if name.removesuffix(SCALER) in raw and name.endswith(SCALER):
            continue
        rows, scaler = tensor.shape[0], raw.get(name + SCALER)
        if (tensor.dtype == torch.int8) != (scaler is not None):
            raise CheckpointError(
                f"{tensor.where} is {dtype_name(tensor.dtype)} "
                f"{'with' if scaler else 'without'} a {name.rpartition('.')[2]}{SCALER}; int8 "
                "weights have one, others none"
            )
        if scaler and (scaler.dtype not in CODES or scaler.shape != (rows,)):
            raise CheckpointError(
                f"{scaler.where} is {dtype_name(scaler.dtype)} {list(scaler.shape)}; expected one "
                f"float for each of {rows} rows"
            )
        ours = _ours(name)
        parts = {ours: rows}
        if _is_fused(name):
            sizes = {"q_proj": N * H, "k_proj": K * H, "v_proj": K * H}
            parts = {ours.replace("qkv_proj", part): size for part, size in sizes.items()}
            if sum(parts.values()) != rows:
                raise CheckpointError(
                    f"{tensor.where} has {rows} rows; a config with {N} query heads, {K} kv heads "
                    f"and head_dim {H} needs {sum(parts.values())}: the config belongs to another "
                    "model"
                )
        first = 0
        for part, count in parts.items():
            if part in parameters:
                raise CheckpointError(f"{source}: {part} is stored twice")
            parameters[part] = ArchivedRows(part, tensor, first, count, scaler)
            first += count
    return parameters


def _inner_config(value: object, source: Path) -> GemmaConfig | None:
    """The config that our writer puts into the file; any other "config" is ignored."""
    if not isinstance(value, dict) or "model_type" not in value:
        return None
    for name, entry in value.items():
        # Deeper nesting could make an error message enormous.
        inside = entry.values() if isinstance(entry, dict) else entry
        inside = inside if isinstance(entry, dict | list) else [entry]
        if not all(x is None or isinstance(x, str | int | float) for x in inside):
            raise CheckpointError(f"{source}: the config in it has an invalid {name!r}")
    return from_hf(value, f"{source}, the config in it")
