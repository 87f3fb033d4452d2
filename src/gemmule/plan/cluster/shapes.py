"""Shapes of models: Gemma 2's, and those of published runs that the planner is checked against."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gemmule.model.config import GemmaConfig

# How tensor parallelism cuts a weight: by rows, by columns, or not at all (Shoeybi et al. 2019).
Cut = Literal["rows", "columns", "none"]
_CUTS: dict[str, Cut] = {
    "q_proj": "rows", "k_proj": "rows", "v_proj": "rows", "gate_proj": "rows", "up_proj": "rows",
    "o_proj": "columns", "down_proj": "columns", "embed_tokens": "rows", "head": "rows",
}  # fmt: skip
ROOT = -1  # the unit of weights outside the blocks


@dataclass(frozen=True)
class Weight:
    """A weight of a model.

    Attributes:
        size: rows and columns; a vector has one column.
        cut: how tensor parallelism cuts it.
        block: number of the block that it belongs to; ROOT for the embedding, the final norm and
            an untied head.
    """

    size: tuple[int, int]
    cut: Cut
    block: int

    def local(self, tensor: int, shards: int) -> int:
        """Elements on the rank with the most: cut by `tensor`, then by rows over `shards` ranks.

        FSDP2 cuts the first dimension into equal chunks, the last of which may be short, so the
        first rank holds the rounded-up share.
        """
        rows, columns = self.size
        if self.cut == "rows":
            rows = math.ceil(rows / tensor)
        elif self.cut == "columns":
            columns = math.ceil(columns / tensor)
        return math.ceil(rows / shards) * columns


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder.

    Attributes:
        name: name for tables.
        width, ffn: sizes of the residual stream and of the feed-forward layer.
        layers, heads, kv_heads, head_dim: blocks and their attention.
        vocab: vocabulary size.
        gated: whether the feed-forward layer has a gate (three matrices instead of two).
        tied: whether the head is the embedding.
        norms: norm vectors per block.
        window: keys that a local layer sees; None: all layers are global. Every second is local.
    """

    name: str
    width: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True
    tied: bool = False
    norms: int = 2
    window: int | None = None

    @classmethod
    def of_gemma(cls, name: str, config: GemmaConfig) -> "Shape":
        """The shape of a Gemma 2."""
        return cls(
            name, config.hidden_size, config.intermediate_size, config.num_hidden_layers,
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
            config.vocab_size, tied=True, norms=4, window=config.sliding_window,
        )  # fmt: skip

    @property
    def block_parameters(self) -> int:
        """Parameters in the matrices of one block."""
        attention = self.width * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + (3 if self.gated else 2) * self.width * self.ffn

    @property
    def parameters(self) -> int:
        """All parameters."""
        blocks = self.layers * (self.block_parameters + self.norms * self.width)
        return blocks + (1 if self.tied else 2) * self.vocab * self.width + self.width

    def weights(self) -> Iterator[Weight]:
        """Every weight: the real ones of a Gemma 2 are the same (tests/plan)."""
        d, kv, qh = self.width, self.kv_heads * self.head_dim, self.heads * self.head_dim
        matrices = {
            "q_proj": (qh, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, qh),
            "up_proj": (self.ffn, d), "down_proj": (d, self.ffn),
        }  # fmt: skip
        if self.gated:
            matrices["gate_proj"] = (self.ffn, d)
        for block in range(self.layers):
            for name, size in matrices.items():
                yield Weight(size, _CUTS[name], block)
            for _ in range(self.norms):
                yield Weight((d, 1), "none", block)
        yield Weight((self.vocab, d), "rows", ROOT)
        if not self.tied:
            yield Weight((self.vocab, d), "rows", ROOT)
        yield Weight((d, 1), "none", ROOT)

    def elements(self, tensor: int, shards: int) -> tuple[int, int]:
        """Elements of one block and of the root unit on the rank with the most."""
        return _elements(self, tensor, shards)

    def linear_flops(self) -> float:
        """Forward FLOPs per token in the matrices of all blocks."""
        return 2.0 * self.layers * self.block_parameters

    def head_flops(self) -> float:
        """Forward FLOPs per token in the head."""
        return 2.0 * self.vocab * self.width

    def attention_flops(self, seq_len: int) -> float:
        """Forward FLOPs per token between queries and the keys that they see (causal)."""
        keys = 0.0
        for layer in range(self.layers):
            local = self.window is not None and layer % 2 == 0
            w = min(self.window or seq_len, seq_len) if local else seq_len
            keys += w - w * (w - 1) / (2 * seq_len)  # mean over queries of min(i + 1, w)
        return 4.0 * self.heads * self.head_dim * keys

    def training_flops(self, seq_len: int) -> float:
        """FLOPs of a training step per token, without recomputation."""
        forward = self.linear_flops() + self.head_flops() + self.attention_flops(seq_len)
        return 3.0 * forward

    def full_square_flops(self, seq_len: int) -> float:
        """The same with attention over all keys, seen or not: how most MFU figures count it."""
        attention = 4.0 * self.layers * self.heads * self.head_dim * seq_len
        return 3.0 * (self.linear_flops() + self.head_flops() + attention)


@functools.lru_cache(maxsize=4096)
def _elements(shape: Shape, tensor: int, shards: int) -> tuple[int, int]:
    weights = list(shape.weights())
    block = sum(w.local(tensor, shards) for w in weights if w.block == 0)
    return block, sum(w.local(tensor, shards) for w in weights if w.block == ROOT)


def _llama(name: str, width: int, ffn: int, layers: int, heads: int, kv: int = 8) -> Shape:
    return Shape(name, width, ffn, layers, heads, kv, 128, 128_256)


def _gpt(
    name: str, width: int, layers: int, heads: int, vocab: int, tied: bool = True,
    head_dim: int | None = None,
) -> Shape:  # fmt: skip
    size = head_dim or width // heads
    return Shape(name, width, 4 * width, layers, heads, heads, size, vocab, gated=False, tied=tied)


# Shapes of the published runs. Llama: table 3 of arXiv 2407.21783; MPT: the YAML files of
# llm-foundry; GPT: the table in Megatron-LM's README; 22B and 52B: MaxText's scripts for TPU v4.
PUBLISHED_SHAPES = {
    shape.name: shape
    for shape in (
        _llama("llama-3.1-8b", 4096, 14336, 32, 32),
        _llama("llama-3.1-70b", 8192, 28672, 80, 64),
        _llama("llama-3.1-405b", 16384, 53248, 126, 128),
        Shape("llama-2-70b", 8192, 28672, 80, 64, 8, 128, 32_000),
        _gpt("mpt-1b", 2048, 24, 16, 50_368),
        _gpt("mpt-3b", 2560, 32, 20, 50_368),
        _gpt("mpt-7b", 4096, 32, 32, 50_368),
        _gpt("mpt-13b", 5120, 40, 40, 50_368),
        _gpt("mpt-30b", 7168, 48, 56, 50_368),
        _gpt("mpt-70b", 8192, 80, 64, 50_368),
        _gpt("gpt-1.7b", 2048, 24, 16, 131_072),
        _gpt("gpt-7.1b", 4096, 30, 32, 131_072),
        _gpt("gpt-16b", 6144, 32, 48, 131_072),
        _gpt("gpt-32b", 7168, 48, 56, 131_072),
        _gpt("gpt-70b", 8192, 84, 64, 131_072),
        _gpt("gpt-119b", 10240, 92, 80, 131_072),
        _gpt("gpt-177b", 12288, 96, 96, 131_072),
        _gpt("gpt-314b", 16384, 96, 128, 131_072),
        _gpt("gpt-462b", 18432, 112, 144, 131_072),
        _gpt("maxtext-22b", 6144, 48, 24, 32_000, tied=False, head_dim=256),
        _gpt("maxtext-52b", 12288, 32, 32, 32_000, tied=False, head_dim=256),
    )
}
