"""Reads Gemma 3 text models in GGUF files: their settings, tensors and tokens.

gemmule does not run them itself; transformers does, as teachers (gemmule.teachers.gemma3_gguf).
Settings have the names of transformers' Gemma3TextConfig. What GGUF leaves out are llama.cpp's own
constants (facts read from its src/llama-model.cpp): one layer of six is global, local layers
rotate with a base of 10,000.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gemmule.checkpoints.gguf.header import Value
from gemmule.checkpoints.gguf.metadata import Metadata
from gemmule.checkpoints.gguf.names import LAYERS_OF_GEMMA3_27B, from_gemma3_gguf, query_scalar
from gemmule.checkpoints.gguf.parts import open_parts, tensors_of
from gemmule.checkpoints.gguf.reader import (
    GgufTensor,
    refuse_other_types,
    require_gguf,
    vocabulary_rows,
)
from gemmule.checkpoints.gguf.tokenizer import stored_pieces
from gemmule.checkpoints.stored_tensor import StoredTensor
from gemmule.model.spm_model import Piece
from gemmule.model.spm_train import SPACE

ARCHITECTURE = "gemma3"
_PATTERN = 6  # every sixth layer is global


@dataclass(frozen=True)
class Gemma3File:
    """An open file; close it when its tensors have been read.

    Attributes:
        settings: fields of transformers' Gemma3TextConfig.
        tensors: the tensors by their names in transformers' text model.
        pieces: its tokens by id, with U+2581 for a space.
    """

    settings: dict[str, Any]
    tensors: dict[str, StoredTensor]
    pieces: list[Piece]
    stack: ExitStack

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def architecture_of(path: Path) -> str | None:
    """The architecture that a GGUF file says it holds; None: it does not say.

    Raises:
        CheckpointError: when it is not a GGUF file, or parts of it are missing.
    """
    with ExitStack() as stack:
        name = open_parts(path, stack)[0].header.metadata.get("general.architecture")
        return name if isinstance(name, str) else None


def open_gemma3(path: Path) -> Gemma3File:
    """Opens a GGUF file that holds a Gemma 3 text model, or any of the parts of a split one.

    Raises:
        CheckpointError: for a file that is broken or lacks keys, and for missing parts.
        TokenizerError: when it has no usable vocabulary.
        MissingExtraError: when the gguf package is not installed.
    """
    require_gguf("reading a GGUF file")
    source = str(path)
    with ExitStack() as stack:
        parts = open_parts(path, stack)
        metadata, stored = parts[0].header.metadata, tensors_of(parts)
        refuse_other_types(metadata, source)
        rows = vocabulary_rows([info for _, info in stored], source)
        tensors = [GgufTensor(file, info, from_gemma3_gguf(info.name)) for file, info in stored]
        return Gemma3File(
            _settings(metadata, rows, source),
            {tensor.name: tensor for tensor in tensors},
            [
                piece._replace(text=piece.text.replace(" ", SPACE))
                for piece in stored_pieces(metadata, rows, source)
            ],
            stack.pop_all(),
        )


def _settings(metadata: Mapping[str, Value], rows: int, source: str) -> dict[str, Any]:
    keys = Metadata(metadata, ARCHITECTURE, source)
    hidden, layers = keys.integer("embedding_length"), keys.integer("block_count")
    heads = max(1, keys.integer("attention.head_count"))
    head_dim = keys.integer("attention.key_length", hidden // heads)
    for key, allowed in {
        "attention.value_length": (head_dim,),
        "attention.sliding_window_pattern": (_PATTERN,),
        "attention.causal": (True,),
        "rope.dimension_count": (head_dim,),
        "rope.scaling.type": ("none", "linear"),
    }.items():
        keys.refuse_other_than(key, *allowed)
    factor = keys.number("rope.scaling.factor", 1.0)
    scaling: dict[str, Any] = {"rope_type": "default"}
    if factor not in (0.0, 1.0):
        scaling = {"rope_type": "linear", "factor": float(factor)}
    return {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "query_pre_attn_scalar": query_scalar(
            layers, hidden, heads, head_dim, LAYERS_OF_GEMMA3_27B
        ),
        "sliding_window": keys.integer("attention.sliding_window"),
        "layer_types": [
            "sliding_attention" if (i + 1) % _PATTERN else "full_attention" for i in range(layers)
        ],
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {
            "full_attention": {**scaling, "rope_theta": keys.number("rope.freq_base", 1e6)},
            "sliding_attention": {
                "rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 1e4),
            },
        },
        "max_position_embeddings": keys.integer("context_length"),
    }  # fmt: skip
