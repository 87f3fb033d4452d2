"""Writes Hugging Face's layout, in one file or in shards."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gemmule import files
from gemmule.checkpoints.checkpoint import SCORE, Checkpoint, known, of_model
from gemmule.checkpoints.hf.config import REWARD_MODEL, generation_config, to_hf
from gemmule.checkpoints.safetensors_file import PREFIX
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor, dtype_name, tensor_bytes
from gemmule.checkpoints.tensor_layout import Bytes, FileLayout, Place, write
from gemmule.checkpoints.weight_files import INDEX, SINGLE
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9  # transformers' default
_CODES = {dtype: code for code, dtype in FLOATS.items()}


def save_model(
    model: Gemma, tokenizer: Tokenizer, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Writes `model` and `tokenizer` to `folder` in one atomic replacement.

    Args:
        model: the model, on any device.
        tokenizer: the tokenizer.
        folder: the folder, created or replaced as a whole.
        dtype: dtype of the stored weights; None: that of each weight.

    Raises:
        OutputError: when the folder cannot be written.
    """
    checkpoint = of_model(model, tokenizer)
    with files.atomic_dir(folder) as tmp:
        write(layouts(checkpoint, dtype), tmp)
        write_companions(checkpoint, tmp, dtype)


def write_companions(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None) -> None:
    """Writes everything but the weights: the configs and the tokenizer's files, if it has one."""
    stored = dtype or checkpoint.tensors["embed_tokens.weight"].dtype
    tokenizer = known(checkpoint.tokenizer_if_any)
    config = to_hf(checkpoint.config, dtype_name(stored), tokenizer)
    if checkpoint.score is not None:
        config |= REWARD_MODEL
    write_configs(config, tokenizer, folder)


def write_configs(config: Mapping[str, Any], tokenizer: Tokenizer | None, folder: Path) -> None:
    """Writes config.json, generation_config.json and the tokenizer's files, if there is one."""
    if tokenizer is not None:
        tokenizer.save(folder)
    files.write_json(folder / "config.json", dict(config))
    files.write_json(folder / "generation_config.json", generation_config(tokenizer))


def layouts(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES
) -> list[FileLayout]:
    """The layouts of the safetensors files and, if there are several, of their index.

    Args:
        checkpoint: the source of the weights.
        dtype: dtype of the stored weights; None: that of each weight.
        shard_bytes: limit of the bytes of weights in a file, exceeded only by a single larger
            tensor.
    """
    shards: list[list[StoredTensor]] = [[]]
    size = total = 0
    score = [] if checkpoint.score is None else [checkpoint.score]
    for tensor in (*checkpoint.weights(), *score):
        nbytes = tensor.numel * (dtype or tensor.dtype).itemsize
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size, total = size + nbytes, total + nbytes
    if len(shards) == 1:
        return [_layout(shards[0], SINGLE, dtype)]
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    where = {_file_name(t): n for n, shard in zip(names, shards, strict=True) for t in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    text = (json.dumps(index, indent=2) + "\n").encode()
    return [
        *(_layout(shard, name, dtype) for name, shard in zip(names, shards, strict=True)),
        FileLayout(INDEX, len(text), [(0, text)], []),
    ]


def _file_name(tensor: StoredTensor) -> str:
    """Its name in the file; the head of a reward model is not part of the inner model."""
    return tensor.name if tensor.name == SCORE else PREFIX + tensor.name


def _layout(tensors: Iterable[StoredTensor], name: str, dtype: torch.dtype | None) -> FileLayout:
    """The layout of one file, with wider dtypes first, so that every tensor is aligned."""
    ordered = sorted(tensors, key=lambda t: -(dtype or t.dtype).itemsize)
    return safetensors_layout(
        name,
        [
            Entry(
                _file_name(tensor),
                _CODES[dtype or tensor.dtype],
                tensor.shape,
                tensor.numel * (dtype or tensor.dtype).itemsize,
                partial(_bytes, tensor, dtype or tensor.dtype),
            )
            for tensor in ordered
        ],
    )


@dataclass(frozen=True)
class Entry:
    """A tensor of a safetensors file.

    Attributes:
        name: name of the tensor.
        code: safetensors' name of the dtype.
        shape: shape of the tensor.
        nbytes: size in bytes.
        data: yields the bytes in chunks.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    nbytes: int
    data: Callable[[], Iterable[Bytes]]


def safetensors_layout(name: str, entries: Sequence[Entry]) -> FileLayout:
    """The layout of a safetensors file: the header's length (8 bytes), the header (JSON), tensors.

    Format: safetensors' README, "Format". The header is padded so that the first tensor is aligned.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends = [0]
    for entry in entries:
        ends.append(ends[-1] + entry.nbytes)
        header[entry.name] = {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "data_offsets": ends[-2:],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # the tensors begin at a multiple of 64
    start = 8 + len(text)
    places = [
        Place(start + begin, entry.nbytes, entry.data)
        for entry, begin in zip(entries, ends, strict=False)
    ]
    head = (0, len(text).to_bytes(8, "little") + text)
    return FileLayout(name, start + ends[-1], [head], places)


def _bytes(tensor: StoredTensor, dtype: torch.dtype) -> Iterator[Bytes]:
    return map(tensor_bytes, tensor.rows_as(dtype))
