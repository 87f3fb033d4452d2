"""Models to measure: random, of the right shape, in our format and in llama.cpp's.

A matrix is made of some rows of random weights, quantized in earnest and repeated: values are
finite and of a sensible size, and no kernel's time depends on them.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemmule import files
from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.gguf import blocks, writer
from gemmule.checkpoints.gguf.header import ENCODINGS
from gemmule.checkpoints.packed.reader import EMBEDDING, QuantizedModel, matrix_shape
from gemmule.checkpoints.packed.writer import save_quantized
from gemmule.checkpoints.stored_tensor import StoredTensor, tensor_bytes
from gemmule.checkpoints.tensor_layout import Bytes, FileLayout, Place, write
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.spm_model import NORMAL, Piece
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.quant.layout import TILE, tensor_specs
from gemmule.quant.packed import PackedMatrix, quantize

TEXT = (Path(tempfile.__file__), Path(argparse.__file__))  # real text, on every machine
_ROWS = 256  # that are drawn
_CODES = {encoding.name: encoding for encoding in ENCODINGS.values()}


def tokenizer_of(rows: int) -> Tokenizer:
    """A small trained one, filled up to `rows` pieces: what loads it must read as many."""
    small = train_tokenizer([path.read_text() for path in TEXT], min(rows, 1024))
    pieces = small.pieces
    more = (Piece(f"~{i:06}~", -1e6 - i, NORMAL) for i in range(len(pieces), rows))
    return Tokenizer.from_pieces([*pieces, *more], "the benchmark's tokenizer")


def ours(folder: Path, config: GemmaConfig, form: str, head: str) -> dict[str, Any]:
    """A quantized folder, made where it is not there yet; what it is."""
    about = {
        "config": config.model_dump(mode="json"), "format": form, "head": head,
        "tokenizer": "stamped",
    }  # fmt: skip
    place = folder / f"gemmule-{form}-{head}"
    if _known(place.with_suffix(".json"), about, place):
        return dict(files.read_json(place.with_suffix(".json")))
    matrices, norms = {}, {}
    drawn: dict[tuple[str, int], PackedMatrix] = {}
    for name, shape in _shapes(config).items():
        if matrix_shape(config, name) is None:
            norms[name] = torch.zeros(shape)
            continue
        kind = head if name == EMBEDDING else form
        rows, columns = shape
        if (kind, columns) not in drawn:
            drawn[kind, columns] = _drawn(kind, columns)
        matrices[name] = _repeated(drawn[kind, columns], rows)
    made = QuantizedModel(
        config, tokenizer_of(config.vocab_size), form, head, matrices, norms
    )  # fmt: skip
    save_quantized(made, place)
    about |= {
        "path": str(place), "bits_per_weight": made.bits_per_weight, "bytes": _bytes_of(place),
    }  # fmt: skip
    files.write_json(place.with_suffix(".json"), about)
    return about


def theirs(folder: Path, config: GemmaConfig, kind: str) -> dict[str, Any]:
    """A GGUF file, made where it is not there yet; what it is.

    Args:
        folder: where.
        config: the shape.
        kind: "Q4_0", whose token embedding is Q6_K as llama.cpp's own quantizer has it (Q8_0 where
            256 does not divide its rows), or "Q8_0".
    """
    head = "Q6_K" if kind == "Q4_0" and config.hidden_size % 256 == 0 else "Q8_0"
    about = {"config": config.model_dump(mode="json"), "format": kind, "head": head}
    place = folder / f"llama-{kind}.gguf"
    if _known(place.with_suffix(".json"), about, place):
        return dict(files.read_json(place.with_suffix(".json")))
    tokenizer = tokenizer_of(config.vocab_size)
    tensors = [_Shape(name, shape) for name, shape in _shapes(config).items()]
    kinds = ["F32" if len(t.shape) == 1 else head if t.name == EMBEDDING else kind for t in tensors]
    source = Checkpoint(
        folder, "memory", config, {t.name: t for t in tensors}, lambda: tokenizer
    )  # fmt: skip
    header = writer._header(source, kind, list(tensors), kinds)
    rows = {}
    at, places, total = writer._align(len(header)), [], 0
    for tensor, stored in zip(tensors, kinds, strict=True):
        columns = tensor.shape[-1]
        if (stored, columns) not in rows:
            rows[stored, columns] = _blocks(stored, columns)
        nbytes = writer._nbytes(tensor, stored)
        places.append(Place(at, nbytes, _Again(rows[stored, columns], nbytes)))
        total += nbytes
        at = writer._align(at + nbytes)
    partial = place.with_suffix(".partial")
    write([FileLayout(partial.name, at, [(0, header)], places)], folder)
    partial.replace(place)
    about |= {
        "path": str(place), "bits_per_weight": 8 * total / config.parameters,
        "bytes": place.stat().st_size,
    }  # fmt: skip
    files.write_json(place.with_suffix(".json"), about)
    return about


def read_once(path: str) -> None:
    """Has a file, or a folder's, in the system's cache."""
    place = Path(path)
    buffer = bytearray(2**24)
    for file in sorted(place.iterdir()) if place.is_dir() else [place]:
        with file.open("rb", buffering=0) as f:
            while f.readinto(buffer):
                pass


def _known(record: Path, about: Mapping[str, Any], place: Path) -> bool:
    """Whether the file that `record` describes is there, and of this shape."""
    if not (record.is_file() and place.exists()):
        return False
    saved = files.read_json(record)
    same = all(saved.get(key) == json.loads(json.dumps(value)) for key, value in about.items())
    return same and saved["path"] == str(place) and saved["bytes"] == _bytes_of(place)


def _bytes_of(place: Path) -> int:
    if place.is_dir():
        return sum(file.stat().st_size for file in place.iterdir())
    return place.stat().st_size


def _shapes(config: GemmaConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in Gemma(config).state_dict().items()}


def _normal(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(columns)
    return torch.randn(rows, columns, generator=generator) * columns**-0.5


def _drawn(kind: str, columns: int) -> PackedMatrix:
    return quantize(_normal(_ROWS, columns), kind)


def _repeated(some: PackedMatrix, rows: int) -> PackedMatrix:
    """The matrix of `rows` rows that repeats these."""
    (shape, _), scales_spec = tensor_specs(some.format, rows, some.columns)
    data = _cycled(some.data, shape[0])
    scales = None
    if some.scales is not None and scales_spec is not None:
        scales = _cycled(some.scales, -(-rows // TILE) * TILE)
    return PackedMatrix(some.format, rows, some.columns, data, scales)


def _cycled(some: Tensor, length: int) -> Tensor:
    times = -(-length // len(some))
    return some.repeat(times, *([1] * (some.dim() - 1)))[:length]


def _blocks(kind: str, columns: int) -> Tensor:
    """Some rows as a GGUF file holds them, bytes."""
    if kind == "F32":
        return torch.ones(columns).view(torch.uint8)
    if kind != "Q6_K":
        return blocks.quantize(_normal(_ROWS, columns), kind).flatten()
    # 256 weights: low and high bits of 6-bit numbers, 16 scales of 8 bits, and one in fp16.
    generator = torch.Generator().manual_seed(columns)
    count = _ROWS * columns // 256
    bits = torch.randint(0, 256, (count, 192), generator=generator, dtype=torch.uint8)
    scales = torch.randint(8, 17, (count, 16), generator=generator, dtype=torch.uint8)
    step = torch.full((count, 1), columns**-0.5 / 216, dtype=torch.float16)  # 18 x 12 of them
    return torch.cat((bits, scales, step.view(torch.uint8)), 1).flatten()


class _Shape(StoredTensor):
    """A name and a shape, for the header."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(name, shape, torch.float32, "F32", name)

    def chunks(self) -> Iterator[Tensor]:
        """Never asked for."""
        raise NotImplementedError


class _Again:
    """The same bytes repeated up to a given length."""

    def __init__(self, some: Tensor, nbytes: int) -> None:
        times = max(1, 2**24 // len(some))
        self._piece, self._nbytes = tensor_bytes(some.repeat(times)), nbytes

    def __call__(self) -> Iterator[Bytes]:
        left = self._nbytes
        while left:
            yield self._piece[:left]
            left -= min(left, len(self._piece))
