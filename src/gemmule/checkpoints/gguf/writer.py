"""Writes GGUF files for llama.cpp."""

import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.gguf import chat_format
from gemmule.checkpoints.gguf import tokenizer as gguf_tokenizer
from gemmule.checkpoints.gguf.blocks import BLOCK, OURS, quantize, scales
from gemmule.checkpoints.gguf.header import DEFAULT_ALIGNMENT, ENCODINGS
from gemmule.checkpoints.gguf.names import (
    ARCHITECTURE,
    LAYERS_OF_27B,
    NORM_OFFSET,
    is_norm,
    query_scalar,
    to_gguf,
)
from gemmule.checkpoints.gguf.reader import require_gguf
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor, is_finite, tensor_bytes
from gemmule.checkpoints.tensor_layout import Bytes, FileLayout, Place
from gemmule.errors import CheckpointError, ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

# Encodings of matrices, and llama.cpp's number for such a file (llama.h, llama_ftype).
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}
_FALLBACK = "F16"  # as in llama.cpp, for rows whose length is not a multiple of the block
_CODES = {encoding.name: code for code, encoding in ENCODINGS.items()}


def layouts(
    checkpoint: Checkpoint, kind: str, name: str = "model.gguf"
) -> tuple[list[FileLayout], list[str]]:
    """The layout of the file, and remarks for the user on how it differs from the source.

    Args:
        checkpoint: the source of the weights and of the tokenizer.
        kind: encoding of the matrices, one of FILE_TYPES; norms are always F32.
        name: name of the file.

    Raises:
        CheckpointError: for a model that llama.cpp cannot run.
        ConfigError: for another kind.
        TokenizerError: when the tokenizer is missing, broken or larger than the embedding.
        MissingExtraError: when the gguf package is not installed.
    """
    require_gguf("writing a GGUF file")
    if kind not in FILE_TYPES:
        raise ConfigError(f"GGUF kind {kind!r} is not one of {', '.join(FILE_TYPES)}")
    config = checkpoint.config
    _refuse_uncapped(config, checkpoint.path)
    factor, notes = _query_factor(config)
    tensors = list(checkpoint.weights())
    kinds = [_kind(tensor, kind) for tensor in tensors]
    if _FALLBACK in kinds and kind in OURS:
        wide = [to_gguf(t.name) for t, k in zip(tensors, kinds, strict=True) if k == _FALLBACK]
        notes.append(
            f"{len(wide)} matrices are stored as {_FALLBACK}, since their rows are not multiples "
            f"of {BLOCK}; the first is {wide[0]}"
        )
    tokenizer = checkpoint.tokenizer
    widened = [token.content for token in tokenizer.added_tokens if not token.plain]
    if widened:
        notes.append(
            f"llama.cpp matches {', '.join(map(repr, widened[:3]))} without regard to the white "
            "space or the words around: GGUF cannot say more"
        )
    if not gguf_tokenizer.survives(tokenizer.pieces, tokenizer.added_tokens):
        notes.append(
            "the tokenizer's fixed symbols have other scores or types than Gemma's, which GGUF "
            "cannot store: read back, it gives the same ids but has another fingerprint"
        )
    head = _header(checkpoint, kind, tensors, kinds)
    at, places = _align(len(head)), []
    for tensor, stored in zip(tensors, kinds, strict=True):
        nbytes = _nbytes(tensor, stored)
        scale = factor if tensor.name.endswith("q_proj.weight") else 1.0
        places.append(Place(at, nbytes, partial(_bytes, tensor, stored, scale)))
        at = _align(at + nbytes)
    return [FileLayout(name, at, [(0, head)], places)], notes


def _refuse_uncapped(config: GemmaConfig, path: Path) -> None:
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, field) is None:
            raise CheckpointError(
                f"{path} has no {field}, and llama.cpp always caps a Gemma 2: such a model can "
                "be exported in Hugging Face's layout only"
            )


def _query_factor(config: GemmaConfig) -> tuple[float, list[str]]:
    """The factor of the queries that makes up for llama.cpp's fixed scale.

    Rotation and projection are linear, so the factor can be part of the projection's weights.
    """
    theirs = query_scalar(
        config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.head_dim
    )
    ours = config.query_pre_attn_scalar or config.head_dim
    if theirs == ours:
        return 1.0, []
    rule = (
        f"hidden_size / heads for {LAYERS_OF_27B} layers"
        if config.num_hidden_layers == LAYERS_OF_27B
        else "head_dim"
    )
    factor = math.sqrt(theirs / ours)
    return factor, [
        f"attn_q is multiplied by {factor:.6g}: llama.cpp scales queries by the inverse root of "
        f"{theirs} ({rule}), this model by that of {ours}"
    ]


def _kind(tensor: StoredTensor, kind: str) -> str:
    if is_norm(tensor.name):
        return "F32"
    return _FALLBACK if kind in OURS and tensor.shape[-1] % BLOCK else kind


def _nbytes(tensor: StoredTensor, kind: str) -> int:
    encoding = ENCODINGS[_CODES[kind]]
    return tensor.numel // encoding.block * encoding.nbytes


def _align(offset: int) -> int:
    return -(-offset // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _bytes(tensor: StoredTensor, kind: str, factor: float) -> Iterator[Bytes]:
    """The bytes of a tensor in the file, in chunks."""
    for rows in tensor.rows_as(torch.float32):
        changed = rows * factor if factor != 1.0 else rows
        if is_norm(tensor.name):
            changed = changed + NORM_OFFSET
        yield tensor_bytes(_encode(changed, kind, tensor.where))


def _encode(rows: Tensor, kind: str, where: str) -> Tensor:
    if kind in OURS:
        stored = quantize(rows, kind)
        fits = is_finite(scales(stored))
    else:
        stored = rows.to(FLOATS[kind])
        fits = is_finite(stored)
    if not fits:
        raise CheckpointError(f"{where} has values too large for {kind}: write it as F32 or BF16")
    return stored


def _header(
    checkpoint: Checkpoint, kind: str, tensors: list[StoredTensor], kinds: list[str]
) -> bytes:
    """The part of the file before the tensors, written by the gguf package."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = gguf.GGUFWriter(path, ARCHITECTURE)
        _add_shape(writer, checkpoint.config, kind)
        _add_tokenizer(writer, checkpoint.tokenizer, checkpoint.config.vocab_size)
        for tensor, stored in zip(tensors, kinds, strict=True):
            code = gguf.GGMLQuantizationType(_CODES[stored])
            # The dtype is only used for tensors without a raw dtype.
            writer.add_tensor_info(
                to_gguf(tensor.name),
                tensor.shape,
                np.dtype(np.float32),
                _nbytes(tensor, stored),
                raw_dtype=code,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()


def _add_shape(writer: "gguf.GGUFWriter", config: GemmaConfig, kind: str) -> None:
    import gguf

    assert config.attn_logit_softcapping is not None
    assert config.final_logit_softcapping is not None
    size = f"{config.parameters / 1e9:.1f}B"
    if config.parameters < 1e9:
        size = f"{config.parameters / 1e6:.0f}M"
    writer.add_type("model")
    writer.add_name(f"Gemma 2 {size}")
    writer.add_size_label(size)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _add_tokenizer(writer: "gguf.GGUFWriter", tokenizer: Tokenizer, rows: int) -> None:
    metadata = {
        **gguf_tokenizer.to_metadata(tokenizer.pieces, rows),
        **chat_format.to_metadata(tokenizer),
        **gguf_tokenizer.added_to_metadata(tokenizer.added_tokens),
    }
    for key, value in metadata.items():
        add: Any = writer.add_string
        if isinstance(value, list):
            add = writer.add_array
        elif isinstance(value, bool):
            add = writer.add_bool
        elif isinstance(value, int):
            add = writer.add_uint32
        add(key, value)
