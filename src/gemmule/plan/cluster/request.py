"""Settings of a plan for a cluster."""

from typing import Self

import pydantic
from pydantic import Field

from gemmule.config import Config, ModelName
from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.plan.cluster.footprint import PUE
from gemmule.plan.settings import TOKENS_PER_PARAMETER

# A batch grows with the run: as many tokens as make this many steps, within these bounds.
STEPS, SMALLEST_BATCH, LARGEST_BATCH = 100_000, 2**19, 2**24
DEFAULT_VOCAB = 256_000


class ClusterRequest(Config):
    """Settings of a plan for a cluster.

    Attributes:
        cluster: device and count, as in h100x512.
        student: preset, or run or model folder.
        teacher: the same; its forward passes are part of each step. None: training from scratch.
        tokens: training tokens; None: 20 per parameter without the embedding.
        vocab_size: vocabulary size of presets that have none of their own; None: Gemma 2's.
        batch_tokens: tokens per optimizer step; None: what makes 100,000 steps, between 0.5M and
            16M.
        seq_len: tokens per sequence; None: the context of the model.
        dtype: data type of the matrix products.
        pue: energy of the building over that of the machines.
        country: ISO 3166 code; None: the world's average grid.
        max_wh, max_gco2e: budget of energy or carbon; None: no limit.
    """

    cluster: str
    student: ModelName
    teacher: ModelName | None = None
    tokens: int | None = Field(default=None, gt=0)
    vocab_size: int | None = Field(default=None, ge=16)
    batch_tokens: int | None = Field(default=None, gt=0)
    seq_len: int | None = Field(default=None, gt=0)
    dtype: str = "bfloat16"
    pue: float = Field(default=PUE, ge=1, le=3, allow_inf_nan=False)
    country: str | None = None
    max_wh: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_gco2e: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.tokens is not None and (self.max_wh is not None or self.max_gco2e is not None):
            raise ValueError("give either tokens or a budget (max_wh, max_gco2e), not both")
        return self

    def length(self, model: GemmaConfig) -> int:
        """Training tokens."""
        return self.tokens or TOKENS_PER_PARAMETER * model.non_embedding_parameters

    def context(self, model: GemmaConfig) -> int:
        """Tokens per sequence.

        Raises:
            ConfigError: for more than the model's context.
        """
        longest = model.max_position_embeddings
        if self.seq_len is not None and self.seq_len > longest:
            raise ConfigError(
                f"seq_len = {self.seq_len} is longer than the context of {self.student}, "
                f"{longest} tokens: shorten it"
            )
        return self.seq_len or longest

    def sequences(self, tokens: int, seq_len: int) -> int:
        """Sequences per optimizer step."""
        wanted = self.batch_tokens or min(LARGEST_BATCH, max(SMALLEST_BATCH, tokens // STEPS))
        return max(1, min(wanted, tokens) // seq_len)
