"""Small models with large weights, on which every part of Gemma 2 changes the logits.

With trained or freshly initialized weights a cap of 50 is hardly reached and a window of 4096
never: an implementation without them gives the same logits. Here scores and logits reach their
caps, the window is shorter than the text, and the query scale is neither that of head_dim nor that
of hidden_size / heads.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from gemmule.doctor.reference import shapes
from gemmule.model.config import GemmaConfig

LENGTH = 40  # tokens of a stressed prompt: more than four windows
PREFILL = 5
FAR = 8180  # a prompt that starts here crosses 8190, where bf16 has lost all positions


def stressed_config(config: GemmaConfig) -> GemmaConfig:
    """A small shape with the rms_norm_eps and rope_theta of `config`."""
    return GemmaConfig(
        vocab_size=211,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        query_pre_attn_scalar=12,
        sliding_window=9,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        max_position_embeddings=16384,
    )


def stressed_weights(config: GemmaConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights with standard deviation 1, norms with 0.3; the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=generator) * (0.3 if "norm" in name else 1.0)).to(dtype)
        for name, shape in shapes(config)
    }


def loud(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with residuals above float16's 65504, as in Gemma 2 itself."""
    return {name: torch.full_like(w, 3e4) if "post_" in name else w for name, w in weights.items()}


def restless(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with layers that outweigh the embedding: tokens depend on the context."""
    return {name: w + 5 if "post_" in name else w for name, w in weights.items()}


def stressed_ids(config: GemmaConfig, count: int = LENGTH, seed: int = 1) -> list[int]:
    """Random tokens, without the padding id."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, config.vocab_size, (count,), generator=generator).tolist()
