"""Shapes to compare: a ladder of students, and variants of a shape with equal parameters."""

import math
from collections.abc import Mapping
from typing import Any

from gemmule.config import nearest
from gemmule.errors import ConfigError
from gemmule.model.config import PRESETS, GemmaConfig


def _rung(d: int, layers: int, heads: int) -> dict[str, int]:
    """The presets' proportions: ffn 4d, two query heads a kv head, heads x head_dim = d."""
    return {
        "hidden_size": d,
        "intermediate_size": 4 * d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": d // heads,
        "sliding_window": 128,
        "max_position_embeddings": 1024,
    }


# Named by non-embedding parameters; below the smallest preset.
SMALL: Mapping[str, Mapping[str, int]] = {
    "0.1m": _rung(48, 3, 2),  # 104,304
    "0.25m": _rung(64, 4, 2),  # 246,848
    "0.5m": _rung(96, 4, 4),  # 554,592
}
STUDENTS = (*SMALL, "1m")
LARGER = tuple(name for name, fields in PRESETS.items() if "vocab_size" not in fields)
TEACHERS = ("0.5m", "1m", "3m")


def shape(name: str, vocab_size: int, **changes: Any) -> GemmaConfig:
    """A rung of the ladder or a preset, with some fields replaced.

    Raises:
        ConfigError: for an unknown name or field, or a value out of range.
    """
    known: Mapping[str, Mapping[str, Any]] = {**SMALL, **PRESETS}
    if name not in known:
        raise ConfigError(f"no model size {name!r}; {nearest(name, list(known))}")
    values = {"vocab_size": vocab_size, **known[name], **changes}
    return GemmaConfig.parse(values, source=f"model size {name}")


def ladder(largest: str) -> tuple[str, ...]:
    """The sizes of students, and presets above them up to `largest`.

    Raises:
        ConfigError: when `largest` is not a preset of ours.
    """
    if largest not in LARGER:
        raise ConfigError(f"largest = {largest!r} is not a size; {nearest(largest, list(LARGER))}")
    return (*SMALL, *LARGER[: LARGER.index(largest) + 1])


def multi_head(base: GemmaConfig) -> GemmaConfig:
    """`base` with a key and a value head for every query head."""
    return base.model_copy(update={"num_key_value_heads": base.num_attention_heads})


def grouped(base: GemmaConfig) -> GemmaConfig:
    """`base` with half as many key and value heads as query heads.

    Raises:
        ConfigError: when there are no two query heads to share one.
    """
    heads = base.num_attention_heads
    if heads % 2:
        raise ConfigError(
            f"{heads} attention heads cannot be grouped in pairs: choose another size"
        )
    return base.model_copy(update={"num_key_value_heads": heads // 2})


def stretched(base: GemmaConfig, layers: int) -> GemmaConfig:
    """A model of `layers` layers with as many non-embedding parameters as `base`, within 2%.

    The width goes with the square root, because the parameters of a layer grow with its square. The
    feed-forward layer takes up what rounding leaves over.
    """
    heads = base.num_attention_heads
    width = base.hidden_size * math.sqrt(base.num_hidden_layers / layers)
    head_dim = max(2, 2 * round(width / (2 * heads)))
    changes = {
        "num_hidden_layers": layers,
        "hidden_size": heads * head_dim,
        "head_dim": head_dim,
        "query_pre_attn_scalar": None,
    }
    return filled(base.model_copy(update=changes), base.non_embedding_parameters)


def filled(shape: GemmaConfig, parameters: int) -> GemmaConfig:
    """`shape` with the feed-forward width closest to that number of non-embedding parameters.

    Raises:
        ConfigError: when that is not within 2%, as with models of very few parameters.
    """
    bare = shape.model_copy(update={"intermediate_size": 0}).non_embedding_parameters
    per_unit = 3 * shape.hidden_size * shape.num_hidden_layers
    width = max(1, round((parameters - bare) / per_unit))
    result = shape.model_copy(update={"intermediate_size": width})
    if abs(result.non_embedding_parameters - parameters) > 0.02 * parameters:
        raise ConfigError(
            f"no feed-forward width gives {shape.num_hidden_layers} layers of "
            f"{shape.hidden_size} about {parameters:,} parameters: choose a larger model"
        )
    return result
