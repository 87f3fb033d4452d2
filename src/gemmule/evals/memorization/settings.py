"""Settings of a memorization measurement."""

import dataclasses
from typing import Any

from gemmule.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Which passages are drawn, and what counts as memorized.

    Attributes:
        probes: number of passages of training text to try.
        prompt_tokens: tokens of a passage that are the prompt.
        continuation_tokens: tokens that follow in the text, which the model should reproduce.
        seed: seed of the draw of passages.
        edit_fraction: fraction of the continuation's tokens that may be edited for it to count as
            approximately reproduced; a tenth in the technical report.

    Raises:
        ConfigError: for a value out of range.
    """

    probes: int = 10_000
    prompt_tokens: int = 50
    continuation_tokens: int = 50
    seed: int = 0
    edit_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("probes", "prompt_tokens", "continuation_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or more")
        if not 0 <= self.edit_fraction < 1:
            raise ConfigError(
                f"edit_fraction is {self.edit_fraction}; it must be at least 0 and below 1"
            )

    @property
    def length(self) -> int:
        """Tokens of a passage."""
        return self.prompt_tokens + self.continuation_tokens

    @property
    def max_edits(self) -> int:
        """Largest number of edits at which a continuation counts as approximately reproduced."""
        return int(self.edit_fraction * self.continuation_tokens + 1e-9)

    def json(self) -> dict[str, Any]:
        """The form that results keep."""
        values = dataclasses.asdict(self)
        values["edit_share"] = values.pop("edit_fraction")
        return {
            **values,
            "most_edits": self.max_edits,
            "decoding": "greedy, <bos> before the prompt",
        }
