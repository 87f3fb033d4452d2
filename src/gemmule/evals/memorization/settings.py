"""How memorisation is probed."""

import dataclasses
from typing import Any

from gemmule.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is drawn, and what counts as memorised.

    Attributes:
        probes: passages of training text to try.
        prompt_tokens: of a passage, given to the model.
        continuation_tokens: that follow in the text, and that the model is to give.
        seed: decides which passages.
        edit_share: of the continuation's tokens that may be edited for it to be given
            approximately; the technical report has a tenth.

    Raises:
        ConfigError: for a value out of range.
    """

    probes: int = 10_000
    prompt_tokens: int = 50
    continuation_tokens: int = 50
    seed: int = 0
    edit_share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("probes", "prompt_tokens", "continuation_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be 0 or more")
        if not 0 <= self.edit_share < 1:
            raise ConfigError(f"edit_share is {self.edit_share}; it must be from 0 to below 1")

    @property
    def length(self) -> int:
        """Tokens of a passage."""
        return self.prompt_tokens + self.continuation_tokens

    @property
    def most_edits(self) -> int:
        """Edits at which a continuation still counts as approximately given."""
        return int(self.edit_share * self.continuation_tokens + 1e-9)

    def json(self) -> dict[str, Any]:
        """As it is kept in results."""
        return {
            **dataclasses.asdict(self),
            "most_edits": self.most_edits,
            "decoding": "greedy, <bos> before the prompt",
        }
