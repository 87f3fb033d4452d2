"""Reads models in int4, int6 or int8: folders in Hugging Face's layout with packed matrices.

config.json has a `quantization_config` that names the formats. For each matrix model.safetensors
holds the packed bytes (`….qweight`, uint8) and, in int8, the rows' scales (`….scales`, fp32); norms
are in fp32. `open_quantized` reads such a folder as dequantized values, which works for every
command; `load_quantized` keeps the matrices packed, for inference.
"""

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.hf.config import from_hf, read_object
from gemmule.checkpoints.huge_pages import HugePages
from gemmule.checkpoints.locate import locate
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.safetensors_file import PREFIX, MappedTensor, read_header
from gemmule.checkpoints.shapes import tokenizer_in
from gemmule.checkpoints.stored_tensor import StoredTensor, is_finite
from gemmule.checkpoints.weight_files import SINGLE
from gemmule.errors import CheckpointError, MissingTokenizerError
from gemmule.model.config import GemmaConfig
from gemmule.model.tokenizer import Tokenizer
from gemmule.quant.layout import (
    FLOATS,
    PACKED,
    SCALE_BYTES,
    TILE,
    TensorSpec,
    superblock_bytes,
    superblocks,
    tensor_specs,
)
from gemmule.quant.packed import FORMATS, PackedMatrix, dequantize, plain

METHOD, VERSION = "gemmule", 1
MEASURED = "quantization.json"
EMBEDDING = "embed_tokens.weight"
_LAYER = re.compile(r"layers\.(?:0|[1-9]\d{0,8})\.(.+)")
_CODES = {torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNED = 64  # bytes of a cache line
_READERS = 4  # threads: a file that is not in memory yet is read faster by several
_EXPONENT = 0x7F80  # of a bf16; all of it is set in what is not a number


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model with packed matrices, in memory.

    Attributes:
        config: the model's config.
        tokenizer: the model's tokenizer, or the error that says that there is none.
        format: format of the layers' matrices, one of PACKED.
        head: format of the embedding, which is also the output head, one of FORMATS.
        matrices: the matrices by our parameter names.
        norms: the norm weights by our parameter names, fp32.
        measured: the measured loss, as in quantization.json; empty: not measured.
        huge_pages: makes huge pages of the file that the matrices are views of; None: they are in
            memory.
    """

    config: GemmaConfig
    tokenizer: Tokenizer | MissingTokenizerError
    format: str
    head: str
    matrices: Mapping[str, PackedMatrix]
    norms: Mapping[str, Tensor]
    measured: Mapping[str, Any] = field(default_factory=dict)
    huge_pages: HugePages | None = None

    @property
    def nbytes(self) -> int:
        """Size of all weights in bytes."""
        norms = sum(norm.nbytes for norm in self.norms.values())
        return norms + sum(matrix.nbytes for matrix in self.matrices.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, norms included."""
        return 8 * self.nbytes / self.config.parameters


def matrix_shape(config: GemmaConfig, name: str) -> tuple[int, int] | None:
    """Rows and columns of a parameter that is a matrix; None for any other name."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads
    if name == EMBEDDING:
        return config.vocab_size, D
    inner = _LAYER.fullmatch(name)
    shapes = {
        "self_attn.q_proj.weight": (N * H, D),
        "self_attn.k_proj.weight": (K * H, D),
        "self_attn.v_proj.weight": (K * H, D),
        "self_attn.o_proj.weight": (D, N * H),
        "mlp.gate_proj.weight": (F, D),
        "mlp.up_proj.weight": (F, D),
        "mlp.down_proj.weight": (D, F),
    }
    return shapes.get(inner[1]) if inner else None


def is_quantized(folder: Path) -> bool:
    """Whether a folder's config.json says that gemmule packed its matrices."""
    try:
        entry = files.read_json(folder / "config.json").get("quantization_config")
        return isinstance(entry, dict) and entry.get("quant_method") == METHOD
    except (OSError, ValueError, RecursionError, AttributeError):
        return False  # the reader reports what is wrong


def open_quantized(folder: Path) -> Checkpoint:
    """Opens the folder of a quantized model; its matrices are read as dequantized values.

    Raises:
        CheckpointError: for files that are missing, damaged, or do not fit the config.
    """
    values = read_object(folder / "config.json")
    format, head = _formats(values.pop("quantization_config", None), folder / "config.json")
    config = from_hf(values, str(folder / "config.json"))
    checkpoint = Checkpoint(folder, "quantized", config, {}, partial(tokenizer_in, folder))
    try:
        file = checkpoint.stack.enter_context(MappedFile(folder / SINGLE))
        checkpoint.tensors = _tensors(file, config, format, head)
    except BaseException:
        checkpoint.stack.close()
        raise
    checkpoint.files = (folder / SINGLE,)
    stored = sum(_size(tensor) for tensor in checkpoint.tensors.values())
    checkpoint.quantized = {
        "format": format,
        "head": head,
        "bits_per_weight": 8 * stored / max(1, sum(t.numel for t in checkpoint.tensors.values())),
        "measured": _measured(folder),
    }
    return checkpoint


def _size(tensor: StoredTensor) -> int:
    return tensor.packed_nbytes if isinstance(tensor, PackedTensor) else tensor.nbytes


def _formats(entry: object, source: Path) -> tuple[str, str]:
    """Checks a quantization_config; returns the formats of the layers' matrices and of the head."""
    if not isinstance(entry, dict) or entry.get("quant_method") != METHOD:
        raise CheckpointError(f"{source}: its quantization_config is not one of gemmule's")
    if entry.get("version") != VERSION:
        raise CheckpointError(
            f"{source}: version {entry.get('version')!r} of the packed format; this gemmule reads "
            f"version {VERSION}: quantize the model again, or update gemmule"
        )
    kind, head = entry.get("format"), entry.get("head")
    if kind not in PACKED or head not in tuple(FORMATS):  # which may be of any type
        raise CheckpointError(
            f"{source}: format is {kind!r} and head {head!r}; expected one of "
            f"{', '.join(PACKED)} and one of {', '.join(FORMATS)}"
        )
    return str(kind), str(head)


def _measured(folder: Path) -> dict[str, Any]:
    return read_object(folder / MEASURED) if (folder / MEASURED).is_file() else {}


def _tensors(
    file: MappedFile, config: GemmaConfig, kind: str, head: str
) -> dict[str, StoredTensor]:
    header, data = read_header(file)
    entries = {name.removeprefix(PREFIX): (name, entry) for name, entry in header.items()}
    tensors: dict[str, StoredTensor] = {}
    for ours, (name, entry) in entries.items():
        base, _, part = ours.rpartition(".")
        weight = f"{base}.weight"
        shape = matrix_shape(config, weight)
        if part == "scales" and f"{base}.qweight" in entries:
            continue
        form = head if weight == EMBEDDING else kind
        if part == "qweight" and shape and form in PACKED:
            data_spec, scales_spec = tensor_specs(form, *shape)
            parts = [_part(file, name, entry, data_spec, data)]
            if scales_spec:
                if f"{base}.scales" not in entries:
                    raise CheckpointError(f"{file.path}: {name} has no scales")
                theirs = entries[f"{base}.scales"]
                parts.append(_part(file, *theirs, scales_spec, data))
            tensors[weight] = PackedTensor(file, weight, form, shape, parts)
        elif part == "weight" and (shape is None or form in FLOATS):
            tensors[ours] = MappedTensor(file, name, entry, data)
        else:
            raise CheckpointError(
                f"{file.path}: {name} is not a tensor of this model in {kind} with its head in "
                f"{head}"
            )
    return tensors


def _part(
    file: MappedFile,
    name: str,
    entry: Mapping[str, Any],
    spec: TensorSpec,
    data: int,
) -> "_Part":
    shape, dtype = spec
    if tuple(entry["shape"]) != shape or entry["dtype"] != _CODES[dtype]:
        raise CheckpointError(
            f"{file.path}: {name} is {entry['dtype']} {entry['shape']}; expected "
            f"{_CODES[dtype]} {list(shape)}"
        )
    start, stop = (data + offset for offset in entry["data_offsets"])
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if not data <= start <= stop <= file.size or stop - start != nbytes:
        raise CheckpointError(f"{file.path}: {name} is outside the file")
    return _Part(start, nbytes, shape, dtype)


@dataclass(frozen=True)
class _Part:
    """A tensor in the file: its first byte, size, shape and dtype."""

    start: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class PackedTensor(StoredTensor):
    """A packed matrix in a file, read as dequantized values.

    Attributes:
        file: the file.
        format: one of PACKED.
        parts: places of the packed bytes and, in int8, of the scales.
    """

    def __init__(
        self, file: MappedFile, name: str, format: str, shape: tuple[int, int], parts: list[_Part]
    ) -> None:
        super().__init__(name, shape, torch.float32, format, f"{file.path}: {name}")
        self.file, self.format, self.parts = file, format, parts

    @property
    def packed_nbytes(self) -> int:
        """Size in the file in bytes."""
        return sum(part.nbytes for part in self.parts)

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, dequantized to fp32."""
        data, (rows, columns) = self.parts[0], self.shape
        tiles_at_once, tile_bytes = max(1, self.rows_at_once // TILE), data.shape[1]
        for first in range(0, data.shape[0], tiles_at_once):
            count = min(tiles_at_once, data.shape[0] - first)
            start = data.start + first * tile_bytes
            stop = start + count * tile_bytes
            tiles = self.file.raw(start, stop).view(count, tile_bytes)
            scales_N = None
            if len(self.parts) > 1:
                scales = self.parts[1].start + first * TILE * 4
                scales_N = self.file.view(scales, scales + count * TILE * 4, torch.float32)
            values = dequantize(self.format, tiles, scales_N, columns)
            yield values[: rows - first * TILE]
            self.file.release(start, stop)

    def matrix(self) -> PackedMatrix:
        """The matrix, still packed, as a view of the file.

        Raises:
            CheckpointError: when a scale is NaN or Inf.
        """
        data, *scales = (
            _aligned(self.file.raw(part.start, part.start + part.nbytes))
            .view(part.dtype)
            .view(part.shape)
            for part in self.parts
        )
        rows, columns = self.shape
        matrix = PackedMatrix(self.format, rows, columns, data, scales[0] if scales else None)
        _check_scales(matrix, self.where)
        return matrix


def _aligned(data: Tensor) -> Tensor:
    """`data`, or a copy where it does not begin at a cache line: other writers do as they like."""
    return data if data.data_ptr() % _ALIGNED == 0 else data.clone()


def load_quantized(path: str | Path) -> QuantizedModel:
    """Loads a quantized model and keeps its matrices packed.

    The matrices are views of the mapped file, so that the first step can begin at once;
    `huge_pages` makes the later ones faster.

    Args:
        path: as for open_checkpoint.

    Raises:
        CheckpointError: when there is no readable quantized model.
        TokenizerError: when its tokenizer is broken.
    """
    folder = locate(path).path
    if not is_quantized(folder):
        raise CheckpointError(f"{path} is not a quantized model: make one with gemmule quantize")
    with open_quantized(folder) as checkpoint, ThreadPoolExecutor(_READERS) as pool:
        checkpoint.weights()  # all there, and of the right shape
        assert checkpoint.quantized is not None
        tokenizer = pool.submit(lambda: checkpoint.tokenizer_if_any)  # at the same time
        packed = {n: t for n, t in checkpoint.tensors.items() if isinstance(t, PackedTensor)}
        file = next(iter(packed.values())).file
        file.prefer_huge_pages()
        read = pool.map(PackedTensor.matrix, packed.values())
        matrices = dict(zip(packed, read, strict=True))
        norms: dict[str, Tensor] = {}
        for name, tensor in checkpoint.tensors.items():
            if name == EMBEDDING and name not in packed:
                dtype = FLOATS[checkpoint.quantized["head"]]
                whole = tensor.copy(dtype, torch.device("cpu"))
                matrices[name] = plain(whole)
            elif name not in packed:
                norms[name] = tensor.copy(torch.float32, torch.device("cpu"))
        about = checkpoint.quantized
        return QuantizedModel(
            checkpoint.config, tokenizer.result(), about["format"], about["head"], matrices, norms,
            about["measured"], file.huge_pages,
        )  # fmt: skip


def _check_scales(matrix: PackedMatrix, where: str) -> None:
    """Raises for scales that are not finite; the integers of a matrix can have any value."""
    if matrix.scales is not None:
        sound = is_finite(matrix.scales)
    else:
        # Superblocks end with their scales, and all but the last are of one size.
        widths = superblocks(matrix.columns)
        count, size = widths.count(widths[0]), superblock_bytes(matrix.format, widths[0])
        tiles = matrix.data.numpy()  # its strided loops are three times as fast as torch's
        blocks = tiles[:, : count * size].reshape(len(tiles), count, size)
        sound = not any(
            ((scales.view(np.uint16) & _EXPONENT) == _EXPONENT).any()
            for scales in (blocks[..., -SCALE_BYTES:], tiles[:, -SCALE_BYTES:])
        )
    if not sound:
        raise CheckpointError(f"{where} has scales that are NaN or Inf: the file is damaged")
