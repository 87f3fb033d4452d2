"""Writes .ckpt files that gemma_pytorch loads, with the config included.

torch.save determines the layout, from tensors without data; the data is then streamed in.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch.serialization import skip_data

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.hf.config import to_hf
from gemmule.checkpoints.parameter_names import GEMMA_PYTORCH_EMBEDDING as EMBEDDING
from gemmule.checkpoints.safetensors_file import PREFIX
from gemmule.checkpoints.stored_tensor import StoredTensor, dtype_name, tensor_bytes
from gemmule.checkpoints.tensor_layout import Bytes, FileLayout, Place

NAME = "model.ckpt"


@dataclass(frozen=True)
class _Matrix:
    """One tensor of the file: the rows of `parts`, one part after another."""

    name: str
    parts: Sequence[StoredTensor]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def nbytes(self) -> int:
        return sum(part.numel for part in self.parts) * self.dtype.itemsize

    def data(self) -> Iterator[Bytes]:
        for part in self.parts:
            yield from map(tensor_bytes, part.rows_as(self.dtype))


class _Outline(io.BytesIO):
    """Records what torch.save writes, and the gaps that it leaves for storages."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[int, bytes]] = []
        self.gaps: list[tuple[int, int]] = []
        self.at = 0

    def write(self, data: Bytes) -> int:  # type: ignore[override]
        self.parts.append((self.at, bytes(data)))
        self.at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == io.SEEK_CUR, "torch.save only seeks forward, past a storage"
        self.gaps.append((self.at, offset))
        self.at += offset
        return self.at


def layouts(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, name: str = NAME
) -> list[FileLayout]:
    """The layout of the file.

    gemma_pytorch has the config in its own code and only reads "model_state_dict"; the "config"
    next to it, in the format of Hugging Face's config.json, is for our reader. The checksums of
    storages are 0, since they come before the data, which is not read beforehand. Neither torch nor
    this project checks them; `unzip -t` does, and reports an error.

    Args:
        checkpoint: the source of the weights.
        dtype: dtype of the stored weights; None: that of each weight.
        name: name of the file.
    """
    matrices = list(_matrices(checkpoint, dtype))
    config = to_hf(checkpoint.config, dtype_name(dtype or checkpoint.dtype))
    outline = _outline(matrices, config)
    assert [size for _, size in outline.gaps] == [matrix.nbytes for matrix in matrices]
    places = [
        Place(offset, matrix.nbytes, matrix.data)
        for (offset, _), matrix in zip(outline.gaps, matrices, strict=True)
    ]
    return [FileLayout(name, outline.at, outline.parts, places)]


def _matrices(checkpoint: Checkpoint, dtype: torch.dtype | None) -> Iterator[_Matrix]:
    """The model's tensors under gemma_pytorch's names, with q, k and v as one matrix."""
    waiting: list[StoredTensor] = []
    for tensor in checkpoint.weights():
        waiting.append(tensor)
        if tensor.name.endswith(("q_proj.weight", "k_proj.weight")):
            continue
        name = PREFIX + tensor.name.replace("v_proj", "qkv_proj")
        if tensor.name == "embed_tokens.weight":
            name = EMBEDDING
        stored = dtype or reduce(torch.promote_types, [part.dtype for part in waiting])
        yield _Matrix(name, waiting, stored)
        waiting = []


def _outline(matrices: Sequence[_Matrix], config: dict[str, object]) -> _Outline:
    from torch._subclasses.fake_tensor import FakeTensorMode

    outline = _Outline()
    with FakeTensorMode():
        weights = {m.name: torch.empty(m.shape, dtype=m.dtype) for m in matrices}
    with skip_data(materialize_fake_tensors=True):
        torch.save({"model_state_dict": weights, "config": config}, outline)
    return outline
