"""Reads models in llama.cpp's GGUF files.

GGUF stores norms in fp32 with 1 added. Subtracting it again loses what the addition rounded away:
up to 6e-8 for a weight near zero, and nothing for a weight that came from bfloat16 and is larger
than 2e-5 (1 + w has room for all its bits).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.gguf import chat_format
from gemmule.checkpoints.gguf import tokenizer as gguf_tokenizer
from gemmule.checkpoints.gguf.blocks import OURS, dequantize
from gemmule.checkpoints.gguf.header import TensorInfo, Value
from gemmule.checkpoints.gguf.metadata import Metadata, shown
from gemmule.checkpoints.gguf.names import (
    ARCHITECTURE,
    NORM_OFFSET,
    from_gguf,
    is_norm,
    query_scalar,
)
from gemmule.checkpoints.gguf.parts import open_parts, tensors_of
from gemmule.checkpoints.mapped_file import MappedFile
from gemmule.checkpoints.other_models import other_gguf
from gemmule.checkpoints.parameter_names import classifier_message
from gemmule.checkpoints.shapes import tokenizer_in
from gemmule.checkpoints.stored_tensor import FLOATS, StoredTensor
from gemmule.errors import CheckpointError, ConfigError, MissingExtraError
from gemmule.model.config import GemmaConfig
from gemmule.model.tokenizer import Tokenizer

# What general.type says of a file that is not a model.
_OTHER_TYPES = {
    "adapter": "a LoRA adapter for llama.cpp (general.type 'adapter'): merge it into its model "
    "with llama.cpp's llama-export-lora and give the result",
    "mmproj": "an image encoder for llama.cpp (general.type 'mmproj'): give the language model's "
    "own GGUF file",
    "imatrix": "an importance matrix of llama.cpp (general.type 'imatrix'), which is used to "
    "quantize: give the model's own GGUF file",
}


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file that holds a Gemma 2, or any of the parts of a split one.

    Raises:
        CheckpointError: for a file that is broken or of another architecture, and for missing
            parts.
        MissingExtraError: when the gguf package is not installed.
    """
    require_gguf("reading a GGUF file")
    with ExitStack() as stack:
        parts = open_parts(path, stack)
        metadata, stored = parts[0].header.metadata, tensors_of(parts)
        config = _config(metadata, [info for _, info in stored], str(path))
        tensors: dict[str, StoredTensor] = {}
        for file, info in stored:
            tensor = GgufTensor(file, info, from_gguf(info.name))
            tensors[tensor.name] = tensor
        return Checkpoint(
            path,
            "gguf",
            config,
            tensors,
            partial(_tokenizer, metadata, path, config.vocab_size),
            tuple(part.file.path for part in parts),
            stack=stack.pop_all(),
        )


def require_gguf(purpose: str) -> None:
    """Checks that the gguf package is installed.

    Raises:
        MissingExtraError: when it is not.
    """
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("gguf", "gguf", purpose) from None


class GgufTensor(StoredTensor):
    """A tensor in a GGUF file; quantized ones are read as fp32.

    Args:
        file: the file.
        info: the tensor's place in it.
        name: its name as a parameter.

    Raises:
        CheckpointError: when it is stored in an encoding that cannot be read.
    """

    def __init__(self, file: MappedFile, info: TensorInfo, name: str) -> None:
        encoding = info.encoding.name
        if not _is_readable(encoding):
            raise CheckpointError(
                f"{file.path}: {info.name} is stored as {encoding}, which the installed gguf "
                'package cannot read: pip install --upgrade "gemmule[gguf]"'
            )
        self._file, self._info = file, info
        self._plain = FLOATS.get(encoding)
        self._offset = NORM_OFFSET if is_norm(name) else 0.0
        dtype = torch.float32 if self._plain is None or self._offset else self._plain
        where = f"{file.path}: {info.name}"
        super().__init__(name, info.shape, dtype, encoding, where)

    def chunks(self) -> Iterator[Tensor]:
        """Yields consecutive rows, decoded."""
        # A vector is one row: blocks of a quantized one must not be cut.
        rows = self.shape[0] if len(self.shape) > 1 else 1
        nbytes = self._info.nbytes // rows
        at_once = self.rows_at_once if len(self.shape) > 1 else 1
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            start = self._info.start + first * nbytes
            decoded = self._decode(start, start + count * nbytes, count)
            yield decoded.view(-1, *self.shape[1:])
            self._file.release(start, start + count * nbytes)

    def _decode(self, start: int, stop: int, rows: int) -> Tensor:
        if self._plain is not None:
            decoded = self._file.view(start, stop, self._plain)
        elif self.stored_as in OURS:
            blocks = self._file.raw(start, stop).view(-1, self._info.encoding.nbytes)
            decoded = dequantize(blocks, self.stored_as).view(rows, -1)
        else:
            import gguf

            raw = self._file.raw(start, stop).numpy().reshape(rows, -1)
            with np.errstate(all="ignore"):  # callers check for NaN and Inf
                numbers = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[self.stored_as])
            decoded = torch.from_numpy(numbers)
        return decoded.float() - self._offset if self._offset else decoded


@cache
def _is_readable(encoding: str) -> bool:
    """Whether blocks of an encoding can be decoded, tried on one block of zeros."""
    if encoding in FLOATS or encoding in OURS:
        return True
    import gguf

    try:
        kind = gguf.GGMLQuantizationType[encoding]
        block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
        gguf.quants.dequantize(block, kind)
    except (KeyError, NotImplementedError):
        return False
    return True


def _tokenizer(metadata: Mapping[str, Value], path: Path, rows: int) -> Tokenizer:
    if gguf_tokenizer.has_tokenizer(metadata):
        tokenizer = gguf_tokenizer.from_metadata(metadata, rows, str(path))
    else:
        tokenizer = tokenizer_in(path.parent)
    return chat_format.from_metadata(tokenizer, metadata, str(path))


def _refuse_others(
    metadata: Mapping[str, Value], tensors: Sequence[TensorInfo], source: str
) -> None:
    """Names what a file holds instead of a Gemma 2."""
    architecture = metadata.get("general.architecture", "missing")
    refuse_other_types(metadata, source)
    if architecture != ARCHITECTURE:
        name = architecture if isinstance(architecture, str) else shown(architecture)
        raise CheckpointError(other_gguf(name).refusal(source))
    if not tensors:
        raise CheckpointError(
            f"{source} holds a vocabulary and no weights (llama.cpp's --vocab-only): give the "
            "model's own GGUF file"
        )
    if any(info.name.startswith("cls.") for info in tensors):
        raise CheckpointError(classifier_message(source, [], "cls.output.weight"))


def refuse_other_types(metadata: Mapping[str, Value], source: str) -> None:
    """Refuses files that are not a model's.

    Raises:
        CheckpointError: naming what it is.
    """
    kind = metadata.get("general.type", "model")
    if kind in _OTHER_TYPES:
        raise CheckpointError(f"{source} is {_OTHER_TYPES[str(kind)]}")


def _config(
    metadata: Mapping[str, Value], tensors: Sequence[TensorInfo], source: str
) -> GemmaConfig:
    _refuse_others(metadata, tensors, source)
    keys = Metadata(metadata, ARCHITECTURE, source)
    hidden, layers = keys.integer("embedding_length"), keys.integer("block_count")
    heads = keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // max(1, heads))
    theta = keys.number("rope.freq_base", 10000.0)
    _refuse_unsupported(keys, head_dim, theta)
    try:
        return GemmaConfig.parse(
            {
                "vocab_size": vocabulary_rows(tensors, source),
                "hidden_size": hidden,
                "intermediate_size": keys.integer("feed_forward_length"),
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
                "head_dim": head_dim,
                "query_pre_attn_scalar": query_scalar(layers, hidden, max(1, heads), head_dim),
                "sliding_window": keys.integer("attention.sliding_window", 4096),
                "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0),
                "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0),
                "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
                "rope_theta": theta,
                "max_position_embeddings": keys.integer("context_length"),
            },
            source=source,
        )
    except ConfigError as e:
        raise CheckpointError(str(e)) from None


def _refuse_unsupported(keys: Metadata, head_dim: int, theta: float) -> None:
    for key, allowed in {
        "attention.value_length": (head_dim,),
        "attention.sliding_window_pattern": (2,),
        "attention.causal": (True,),
        "expert_count": (0,),
        "rope.dimension_count": (head_dim,),
        "rope.freq_base_swa": (theta,),
        "rope.scaling.factor": (0.0, 1.0),
        "rope.scale_linear": (0.0, 1.0),
        "rope.scaling.attn_factor": (1.0,),
    }.items():
        keys.refuse_other_than(key, *allowed)
    # llama.cpp treats "linear" without a factor as no scaling.
    keys.refuse_other_than("rope.scaling.type", "none", "linear")


def vocabulary_rows(tensors: Sequence[TensorInfo], source: str) -> int:
    """The number of rows of the embedding; `vocab_size` is not always among the keys."""
    for info in tensors:
        if info.name == "token_embd.weight":
            return info.shape[0]
    raise CheckpointError(f"{source} lacks token_embd.weight, the embedding")
