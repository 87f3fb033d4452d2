"""The shape of a Gemma 2 model, and the published and small presets.

Field names are those of the Hugging Face config, so that config.json needs no translation.
"""

from collections.abc import Mapping
from typing import Any, Self

import pydantic
from pydantic import Field

from gemmule.config import Config, nearest
from gemmule.errors import ConfigError


class GemmaConfig(Config):
    """Everything the forward pass depends on (report, table 1; checked against HF's config).

    Attributes:
        query_pre_attn_scalar: scores are scaled by its inverse square root; None: head_dim.
        sliding_window: number of keys that a local layer sees, the query's own included.
        attn_logit_softcapping: cap c of c*tanh(score/c), applied before the mask; None: no cap.
        final_logit_softcapping: cap c of the final logits; None: no cap.
        max_position_embeddings: context length of training, in tokens.
    """

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0, multiple_of=2)
    query_pre_attn_scalar: int | None = Field(default=None, gt=0)
    sliding_window: int = Field(default=4096, gt=0)
    attn_logit_softcapping: float | None = Field(default=50.0, gt=0, allow_inf_nan=False)
    final_logit_softcapping: float | None = Field(default=30.0, gt=0, allow_inf_nan=False)
    rms_norm_eps: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    rope_theta: float = Field(default=10000.0, gt=1, allow_inf_nan=False)
    max_position_embeddings: int = Field(default=8192, gt=0)

    @pydantic.model_validator(mode="after")
    def _heads_share_evenly(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores, applied before the cap."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    def is_local(self, layer: int) -> bool:
        """Whether a layer, counted from zero, uses the sliding window: even layers do."""
        return layer % 2 == 0

    @property
    def non_embedding_parameters(self) -> int:
        """Number of parameters without the (tied) embedding, as in the report's table 2."""
        d, f, h = self.hidden_size, self.intermediate_size, self.head_dim
        n, k = self.num_attention_heads, self.num_key_value_heads
        per_layer = d * h * (n + 2 * k) + n * h * d + 3 * d * f + 4 * d
        return self.num_hidden_layers * per_layer + d

    @property
    def parameters(self) -> int:
        """Number of parameters; the embedding is tied to the head and counts once."""
        return self.non_embedding_parameters + self.vocab_size * self.hidden_size

    def forward_flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations of the forward pass per token, averaged over a causal sequence.

        Counts two operations per multiply-add, in all matrix products including the head, and in
        attention over the keys that a query sees. A training step costs three times as much.
        """
        d, f, h = self.hidden_size, self.intermediate_size, self.head_dim
        n, k = self.num_attention_heads, self.num_key_value_heads
        weights = self.num_hidden_layers * (d * h * (n + 2 * k) + n * h * d + 3 * d * f)
        weights += self.vocab_size * d
        keys = 0.0
        for layer in range(self.num_hidden_layers):
            w = min(self.sliding_window, seq_len) if self.is_local(layer) else seq_len
            keys += w - w * (w - 1) / (2 * seq_len)  # mean over queries of min(i + 1, w)
        return 2.0 * weights + 4.0 * n * h * keys


def _shape(d: int, layers: int, heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    """The shape of a small model: ffn 4d, two query heads per kv head, heads x head_dim = d."""
    return {
        "hidden_size": d,
        "intermediate_size": 4 * d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": head_dim,
        **more,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Ours, named by non-embedding parameters; context and window are chosen for laptops.
    "1m": _shape(128, 4, 4, 32, sliding_window=128, max_position_embeddings=1024),
    "3m": _shape(192, 6, 6, 32, sliding_window=128, max_position_embeddings=1024),
    "10m": _shape(256, 10, 4, 64, sliding_window=256, max_position_embeddings=2048),
    "30m": _shape(384, 14, 6, 64, sliding_window=256, max_position_embeddings=2048),
    "100m": _shape(640, 16, 10, 64, sliding_window=512, max_position_embeddings=4096),
    "200m": _shape(768, 22, 6, 128, sliding_window=1024, max_position_embeddings=4096),
    "400m": _shape(1024, 26, 8, 128, sliding_window=2048, max_position_embeddings=8192),
    "1b": _shape(1536, 28, 6, 256, sliding_window=4096, max_position_embeddings=8192),
    # Published (report, table 1; 27b scales queries by d_model / heads).
    "2b": {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "9b": {
        "vocab_size": 256000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "27b": {
        "vocab_size": 256000,
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
}


def preset(name: str, **overrides: Any) -> GemmaConfig:
    """The preset `name` with some fields replaced.

    Small presets have no vocabulary size: pass `vocab_size`.

    Raises:
        ConfigError: for an unknown preset or field, or a value out of range.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown model preset {name!r}; {nearest(name, list(PRESETS))}")
    return GemmaConfig.parse({**PRESETS[name], **overrides}, source=f"preset {name}")
