"""Tiny Gemma 2 models: named shapes, and weights drawn from a seed.

A test starts from the shape nearest to what it needs and names what it changes:
`random_model(tiny_config(GROUPED, vocab_size=544), seed=3, std={"": 0.4})`. The same arguments give
the same weights, bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma

Shape = Mapping[str, Any]
Spread = float | Callable[[torch.Tensor], float]

# Two query heads over one key-value head, one layer with a window and one without.
TINY: Shape = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "sliding_window": 8,
    "max_position_embeddings": 64,
}
# The least of everything, for tests that read or damage every byte.
SMALLEST: Shape = {
    **TINY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "head_dim": 4,
    "sliding_window": 6,
}
# Two groups of query heads, windows shorter than most texts, a query scale that is not head_dim.
GROUPED: Shape = {
    **TINY,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 24,
    "sliding_window": 7,
}
# No field at its default: a format that loses one is caught.
DISTINCT: Shape = {
    **GROUPED,
    "vocab_size": 520,
    "num_hidden_layers": 3,
    "sliding_window": 6,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
    "attn_logit_softcapping": 20.0,
    "final_logit_softcapping": 15.0,
}

# Large enough that caps, windows and norms all change the logits.
STRONG: Mapping[str, Spread] = {"norm": 0.3, "embed": 1.0, "": 0.5}


def tiny_config(shape: Shape = TINY, **changes: Any) -> GemmaConfig:
    """The config of a named shape with some fields changed; TINY and GROUPED need a vocab_size."""
    return GemmaConfig.parse({**shape, **changes}, source="test")


DISTINCT_CONFIG = tiny_config(DISTINCT)
# Two rows of ids below 512, longer than three windows of the shape above.
TOKENS = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(1))


def fresh_model(config: GemmaConfig, seed: int) -> Gemma:
    """A model with the weights that training starts from; sets torch's global seed."""
    torch.manual_seed(seed)
    return Gemma(config)


def random_model(
    config: GemmaConfig = DISTINCT_CONFIG,
    seed: int = 0,
    *,
    std: Mapping[str, Spread] = STRONG,
    mean: Mapping[str, float] | None = None,
) -> Gemma:
    """A model with normally distributed weights, norms included.

    Args:
        config: shape of the model.
        seed: seed of the weights.
        std: standard deviation by part of a parameter's name; the first part that is in the name
            counts, and "" is in all. A function gets the parameter.
        mean: mean by part of a name, in the same way; 0 where none fits.
    """
    model = Gemma(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            spread = _first(std, name)
            scale = spread(p) if callable(spread) else spread
            p.copy_(torch.randn(p.shape, generator=generator) * scale + _first(mean or {}, name, 0))
    return model


def fan_in(p: torch.Tensor) -> float:
    """The standard deviation that keeps activations at one size: 1 over the root of the inputs."""
    return p.shape[-1] ** -0.5


def _first(by_part: Mapping[str, Any], name: str, otherwise: Any = None) -> Any:
    return next((value for part, value in by_part.items() if part in name), otherwise)
