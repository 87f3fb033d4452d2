"""Reads gemma_pytorch's files: a .ckpt, a folder of shards, and int8 weights with row scalers.

Facts read from gemma_pytorch's gemma/model.py: torch.save of `{"model_state_dict": ...}`, or shards
with plain state dicts; q, k and v are one matrix, with their rows in that order; an int8 weight is
multiplied by `weight_scaler`, one per row.

Such a file is a zip archive of a pickle (see weights_pickle.py) and of raw storages, which are read
in place.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.gemma_pytorch.weights_pickle import unpickle
from gemmule.checkpoints.hf.config import from_hf, read_object
from gemmule.checkpoints.hf.reader import PREFIX, shard_names
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.shapes import config_beside, published_config, tokenizer_beside
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor, dtype_name, few
from gemmule.checkpoints.zip_archive import READ_BYTES, checked_members, data_start, opened_zip
from gemmule.errors import CheckpointError, first_line
from gemmule.model.config import GemmaConfig

INDEX = "pytorch_model.bin.index.json"
EMBEDDING = "embedder.weight"
FUSED = "self_attn.qkv_proj.weight"
SCALER = "_scaler"
_DROPPED = {"freqs_cis"}  # rotary angles, which the config determines
_CODES = {dtype: code for code, dtype in FLOATS.items()}


def open_gemma_pytorch(path: Path) -> Checkpoint:
    """Opens a .ckpt file, or a folder with gemma_pytorch's index and its shards.

    The config comes from a config.json next to it, or else from the file itself, where our writer
    puts one, or else from the published size with these shapes.

    Raises:
        CheckpointError: for files that are missing, broken, hostile or of another architecture.
    """
    files, expected = _files(path)
    with ExitStack() as stack:
        raw: dict[str, _Raw] = {}
        inner: object = None
        for file in files:
            tensors, inner = _read(stack.enter_context(MappedFile(file)))
            for name, tensor in tensors.items():
                if name in raw or (expected and expected.get(name) != file.name):
                    raise CheckpointError(
                        f"{file}: {name} belongs in another file according to {INDEX}"
                    )
                raw[name] = tensor
        lost = [name for name in expected or () if name not in raw and name not in _DROPPED]
        if lost:
            raise CheckpointError(f"{path}: the shards lack {few(lost)}; download them again")
        config = config_beside(path) or _inner_config(inner, path) or _published(raw, path)
        return Checkpoint(
            path,
            "gemma_pytorch",
            config,
            _parameters(raw, config, path),
            partial(tokenizer_beside, path),
            tuple(files),
            stack=stack.pop_all(),
        )


def _files(path: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files and, if there are several, the file name of each tensor."""
    if not path.is_dir():
        return [path], None
    expected = read_object(path / INDEX).get("weight_map")
    if not isinstance(expected, dict) or not expected:
        raise CheckpointError(f"{path / INDEX}: weight_map is missing or not an object")
    return [path / name for name in shard_names(expected, path / INDEX)], expected


@dataclass(frozen=True)
class _Raw:
    """A tensor in the file, from byte `start` on."""

    file: MappedFile
    name: str
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def where(self) -> str:
        return f"{self.file.path}: {self.name}"

    def rows(self, first: int, count: int) -> tuple[int, int]:
        """The first byte of these rows, and the end of the last one."""
        row = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        return self.start + first * row, self.start + (first + count) * row


class _Rows(StoredTensor):
    """Some rows of a stored tensor; int8 ones are multiplied by their scalers, in float32."""

    def __init__(self, name: str, raw: _Raw, first: int, count: int, scaler: _Raw | None) -> None:
        self._raw, self._first, self._scaler = raw, first, scaler
        # Wide enough for an exact product with a bfloat16 scaler.
        dtype = torch.promote_types(torch.float32, scaler.dtype) if scaler else raw.dtype
        form = "I8" if scaler else _CODES[dtype]
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
    raw: Mapping[str, _Raw], config: GemmaConfig, source: Path
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
        if scaler and (scaler.dtype not in _CODES or scaler.shape != (rows,)):
            raise CheckpointError(
                f"{scaler.where} is {dtype_name(scaler.dtype)} {list(scaler.shape)}; expected one "
                f"float for each of {rows} rows"
            )
        ours = "embed_tokens.weight" if name == EMBEDDING else name.removeprefix(PREFIX)
        parts = {ours: rows}
        if name.endswith(FUSED):
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
            parameters[part] = _Rows(part, tensor, first, count, scaler)
            first += count
    return parameters


def _published(raw: Mapping[str, _Raw], source: Path) -> GemmaConfig:
    first = "model.layers.0.mlp.gate_proj.weight"
    lost = [name for name in (EMBEDDING, first) if name not in raw]
    if lost or len(raw[EMBEDDING].shape) != 2:
        raise CheckpointError(
            f"{source} is not a Gemma 2 of gemma_pytorch: it holds {few(list(raw))}; expected "
            f"{EMBEDDING} [V, D] and {first} [F, D]"
        )
    layers = {name.split(".")[2] for name in raw if name.startswith("model.layers.")}
    known = {
        "vocab_size": raw[EMBEDDING].shape[0],
        "hidden_size": raw[EMBEDDING].shape[1],
        "intermediate_size": raw[first].shape[0],
        "num_hidden_layers": len(layers),
    }
    return published_config(known, str(source))


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


# --- the archive --------------------------------------------------------------------------------


def _read(file: MappedFile) -> tuple[dict[str, _Raw], object]:
    """The tensors of one file, and its value of "config"."""
    path = file.path
    if bytes(file.raw(0, min(4, file.size)).tolist()) != b"PK\3\4":
        raise CheckpointError(
            f"{path} is not the zip archive that torch.save has written since torch 1.6. Older "
            "formats cannot be read: if you trust the file, load it with torch.load(path, "
            "weights_only=True) and write it again with torch.save"
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
    weights = outer.get("model_state_dict", outer)
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
        if name not in _DROPPED:
            storage = starts.get(getattr(tensor.untyped_storage(), "_checkpoint_offset", -1), "")
            tensors[name] = _raw(file, name, tensor, *storages.get(storage, (0, 0)))
    return tensors, outer.get("config")


def _raw(file: MappedFile, name: str, tensor: Tensor, start: int, size: int) -> _Raw:
    """Checks a tensor without data against its storage in the file."""
    if tensor.dtype not in _CODES and tensor.dtype != torch.int8:
        raise CheckpointError(
            f"{file.path}: {name} is stored as {dtype_name(tensor.dtype)}; supported are int8 and "
            f"{', '.join(map(dtype_name, _CODES))}"
        )
    first = int(tensor.storage_offset()) * tensor.dtype.itemsize
    last = first + tensor.numel() * tensor.dtype.itemsize
    # A view that repeats elements would be larger than its storage.
    if not tensor.is_contiguous() or tensor.ndim not in {1, 2} or not 0 <= first < last <= size:
        raise CheckpointError(
            f"{file.path}: {name} {list(tensor.shape)} is not a contiguous matrix or vector in its "
            f"storage of {size} bytes; save it again with .contiguous(), or download it again"
        )
    return _Raw(file, name, start + first, tuple(tensor.shape), tensor.dtype)


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
