"""Models in int4, int6 or int8: a folder in Hugging Face's layout whose matrices are packed.

config.json has a `quantization_config` that names the formats; model.safetensors holds for each
matrix its packed bytes (`….qweight`, uint8) and, in int8, its rows' scales (`….scales`, fp32), and
the norms in fp32. Every command reads such a folder as the values it stands for (`open_quantized`);
what multiplies with packed matrices loads them as they are (`load_quantized`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.hf.config import from_hf, read_object
from gemmule.checkpoints.hf.reader import PREFIX, MappedTensor, read_header
from gemmule.checkpoints.locate import SINGLE, locate
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.stored_tensor import StoredTensor, empty, is_finite
from gemmule.errors import CheckpointError
from gemmule.model.config import GemmaConfig
from gemmule.model.tokenizer import Tokenizer
from gemmule.quant.layout import (
    FLOATS,
    PACKED,
    SCALE_BYTES,
    TILE,
    TensorSpec,
    padded,
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
_ALIGNED = 64  # bytes; what processors load at once
_PIECE = 2**23  # bytes read by one thread at a time
_READERS = 4


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model whose matrices are packed, in memory.

    Attributes:
        config: the model's shape.
        tokenizer: its partner.
        format: of the layers' matrices, one of PACKED.
        head: of the embedding, which is also the head: one of FORMATS.
        matrices: by our parameters' names.
        norms: by our parameters' names, fp32.
        measured: what quantizing it cost, as quantization.json has it; empty: not measured.
    """

    config: GemmaConfig
    tokenizer: Tokenizer
    format: str
    head: str
    matrices: Mapping[str, PackedMatrix]
    norms: Mapping[str, Tensor]
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all weights, bytes."""
        norms = sum(norm.nbytes for norm in self.norms.values())
        return norms + sum(matrix.nbytes for matrix in self.matrices.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of all weights, norms included, for each of them."""
        return 8 * self.nbytes / self.config.parameters


def matrix_shape(config: GemmaConfig, name: str) -> tuple[int, int] | None:
    """Rows and columns of the matrix of that name; None where there is none."""
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
    """Whether a folder's config.json says that its matrices are packed by gemmule."""
    try:
        said = files.read_json(folder / "config.json").get("quantization_config")
        return isinstance(said, dict) and said.get("quant_method") == METHOD
    except (OSError, ValueError, RecursionError, AttributeError):
        return False  # the reader that looks closer says what is wrong


def open_quantized(folder: Path) -> Checkpoint:
    """The folder as the values that its packed matrices stand for.

    Raises:
        CheckpointError: for files that are missing, damaged, or do not fit the config.
    """
    values = read_object(folder / "config.json")
    said = _formats(values.pop("quantization_config", None), folder / "config.json")
    config = from_hf(values, str(folder / "config.json"))
    found = Checkpoint(folder, "quantized", config, {}, lambda: Tokenizer.load(folder))
    try:
        file = found.stack.enter_context(MappedFile(folder / SINGLE))
        found.tensors = _tensors(file, config, *said)
    except BaseException:
        found.stack.close()
        raise
    found.files = (folder / SINGLE,)
    stored = sum(_size(tensor) for tensor in found.tensors.values())
    found.quantized = {
        "format": said[0],
        "head": said[1],
        "bits_per_weight": 8 * stored / max(1, sum(t.numel for t in found.tensors.values())),
        "measured": _measured(folder),
    }
    return found


def _size(tensor: StoredTensor) -> int:
    return tensor.packed_nbytes if isinstance(tensor, PackedTensor) else tensor.nbytes


def _formats(said: object, source: Path) -> tuple[str, str]:
    """The formats of the layers' matrices and of the embedding."""
    known = isinstance(said, dict) and said.get("quant_method") == METHOD
    if not (isinstance(said, dict) and known):
        raise CheckpointError(f"{source}: its quantization_config is not one of gemmule's")
    if said.get("version") != VERSION:
        raise CheckpointError(
            f"{source}: version {said.get('version')!r} of the packed format; this gemmule reads "
            f"version {VERSION}: quantize the model again, or update gemmule"
        )
    kind, head = said.get("format"), said.get("head")
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
    found: dict[str, StoredTensor] = {}
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
            found[weight] = PackedTensor(file, weight, form, shape, parts)
        elif part == "weight" and (shape is None or form in FLOATS):
            found[ours] = MappedTensor(file, name, entry, data)
        else:
            raise CheckpointError(
                f"{file.path}: {name} is no tensor of this model in {kind} with its head in {head}"
            )
    return found


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
        raise CheckpointError(f"{file.path}: {name} lies outside the file")
    return _Part(start, nbytes, shape, dtype)


@dataclass(frozen=True)
class _Part:
    """Bytes of the file that are one tensor."""

    start: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class PackedTensor(StoredTensor):
    """A packed matrix in a file; read as the values it stands for.

    Attributes:
        format: one of PACKED.
        parts: the packed bytes and, in int8, the scales.
    """

    def __init__(
        self, file: MappedFile, name: str, format: str, shape: tuple[int, int], parts: list[_Part]
    ) -> None:
        super().__init__(name, shape, torch.float32, format, f"{file.path}: {name}")
        self._file, self.format, self.parts = file, format, parts

    @property
    def packed_nbytes(self) -> int:
        """Bytes in the file."""
        return sum(part.nbytes for part in self.parts)

    def chunks(self) -> Iterator[Tensor]:
        """See StoredTensor."""
        data, (rows, columns) = self.parts[0], self.shape
        tiles_at_once, tile_bytes = max(1, self.rows_at_once // TILE), data.shape[1]
        for first in range(0, data.shape[0], tiles_at_once):
            count = min(tiles_at_once, data.shape[0] - first)
            start = data.start + first * tile_bytes
            stop = start + count * tile_bytes
            tiles = self._file.raw(start, stop).view(count, tile_bytes)
            scales_N = None
            if len(self.parts) > 1:
                scales = self.parts[1].start + first * TILE * 4
                scales_N = self._file.view(scales, scales + count * TILE * 4, torch.float32)
            values = dequantize(self.format, tiles, scales_N, columns)
            yield values[: rows - first * TILE]
            self._file.release(start, stop)


def load_quantized(path: str | Path) -> QuantizedModel:
    """Loads a quantized model, its matrices packed.

    They are read straight into memory of their own, in huge pages where there are any, by several
    threads: about as fast as the file can be read, and later faster to multiply with than pages
    of a mapped file.

    Args:
        path: as for open_checkpoint.

    Raises:
        CheckpointError: when there is no readable quantized model.
        TokenizerError: when its tokenizer is missing or broken.
    """
    folder = locate(path).path
    if not is_quantized(folder):
        raise CheckpointError(f"{path} is no quantized model: make one with gemmule quantize")
    with open_quantized(folder) as checkpoint:
        checkpoint.weights()  # all there, and of the right shape
        assert checkpoint.quantized is not None
        tokenizer = checkpoint.tokenizer
        packed = {n: t for n, t in checkpoint.tensors.items() if isinstance(t, PackedTensor)}
        matrices = _read(folder / SINGLE, packed)
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
            checkpoint.config, tokenizer, about["format"], about["head"], matrices, norms,
            about["measured"],
        )  # fmt: skip


def _read(path: Path, packed: Mapping[str, PackedTensor]) -> dict[str, PackedMatrix]:
    """The packed matrices in one piece of memory, each at an address that suits processors."""
    starts, total = [], 0
    parts = [part for tensor in packed.values() for part in tensor.parts]
    for part in parts:
        starts.append(total)
        total += padded(part.nbytes, _ALIGNED)
    arena = empty((total,), torch.uint8, torch.device("cpu"))
    memory: memoryview = arena.numpy().data
    with path.open("rb") as f, ThreadPoolExecutor(_READERS) as pool:

        def read(piece: tuple[int, int, int]) -> bool:
            offset, start, count = piece
            return os.preadv(f.fileno(), [memory[start : start + count]], offset) == count

        pieces = [
            (part.start + at, start + at, min(_PIECE, part.nbytes - at))
            for part, start in zip(parts, starts, strict=True)
            for at in range(0, part.nbytes, _PIECE)
        ]
        try:
            whole = all(pool.map(read, pieces))
        except OSError as e:
            raise CheckpointError(f"{path} cannot be read: {e}") from None
    if not whole:
        raise CheckpointError(f"{path} was cut short while it was read")
    tensors = iter(
        arena[start : start + part.nbytes].view(part.dtype).view(part.shape)
        for part, start in zip(parts, starts, strict=True)
    )
    found = {}
    for name, tensor in packed.items():
        data = next(tensors)
        scales = next(tensors) if len(tensor.parts) > 1 else None
        rows, columns = tensor.shape
        found[name] = PackedMatrix(tensor.format, rows, columns, data, scales)
        _check_scales(found[name], tensor.where)
    return found


def _check_scales(matrix: PackedMatrix, where: str) -> None:
    """Any integers are weights, but a scale must be a number."""
    if matrix.scales is not None:
        sound = is_finite(matrix.scales)
    else:
        sound, at = True, 0
        for width in superblocks(matrix.columns):
            at += superblock_bytes(matrix.format, width)
            scales = matrix.data[:, at - SCALE_BYTES : at].contiguous().view(torch.bfloat16)
            sound = sound and is_finite(scales.float())
    if not sound:
        raise CheckpointError(f"{where} has scales that are NaN or Inf: the file is damaged")
