"""The group `[adapter]` of a run's settings."""

from typing import Literal, Self, get_args

import pydantic
from pydantic import Field

from gemmule.config import Config

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS: tuple[Target, ...] = get_args(Target)


class AdapterSettings(Config):
    """An adapter that a run of any kind trains instead of the model's own weights.

    Attributes:
        kind: "lora", or "dora", which also trains the norms of the weights' rows.
        rank: rank of the trained product.
        alpha: the product is scaled by alpha / rank.
        targets: matrices of each layer that are adapted.
        tokens: tokens whose rows of the embedding are trained. A base model has never seen
            the turn markers, and cannot learn to end a turn without them.
    """

    kind: Literal["lora", "dora"] = "lora"
    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    targets: tuple[Target, ...] = Field(default=TARGETS, min_length=1)
    tokens: tuple[str, ...] = ("<start_of_turn>", "<end_of_turn>")

    @pydantic.field_validator("targets", mode="before")
    @classmethod
    def _not_the_head(cls, targets: object) -> object:
        for name in ("lm_head", "embed_tokens"):
            if isinstance(targets, list | tuple) and name in targets:
                raise ValueError(
                    f"{name} cannot be adapted: Gemma 2's head is its embedding, one matrix, and "
                    "merging would change both; name rows to train in adapter.tokens instead"
                )
        return targets

    @pydantic.model_validator(mode="after")
    def _names_once(self) -> Self:
        for name in ("targets", "tokens"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice: {', '.join(values)}")
        return self
