"""Settings of gemmule bench."""

from typing import Any

import pydantic
from pydantic import Field

from gemmule.config import Config
from gemmule.errors import ConfigError

_MAX_BATCH = 256


class SpeedRequest(Config):
    """Settings of a measurement.

    Attributes:
        model: run, folder, file or hub id.
        quantize: "int4", "int6" or "int8" to quantize the weights first; None: as stored.
        threads: number of CPU threads; None: every core that can be used.
        prompt: tokens of the prompt, for prefill.
        context: tokens already in the cache, for decode.
        batch: batch sizes for decode.
        beside: number of busy processes, one thread each, next to which all is measured once more;
            0: it is measured alone only.
    """

    model: str
    quantize: str | None = None
    threads: int | None = Field(default=None, ge=1, le=1024)
    prompt: int = Field(default=512, ge=1)
    context: int = Field(default=128, ge=1)
    batch: tuple[int, ...] = (1, 8)
    beside: int = Field(default=0, ge=0, le=256)

    @pydantic.field_validator("batch", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not all(part.strip().isdecimal() for part in value.split(",")):
            raise ValueError("it must be whole numbers with commas between them, as in 1,8")
        return tuple(int(part) for part in value.split(","))

    @pydantic.field_validator("batch")
    @classmethod
    def _sequences(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or not all(1 <= count <= _MAX_BATCH for count in value):
            raise ValueError(f"each must be from 1 to {_MAX_BATCH}")
        return tuple(sorted({1, *value}))

    def check_fits(self, context: int, steps: int) -> None:
        """Refuses lengths that do not fit into the model's context.

        Raises:
            ConfigError: for such a length.
        """
        for name, more in (("prompt", 1), ("context", steps)):
            value = getattr(self, name)
            if value + more > context:
                raise ConfigError(
                    f"{name} = {value}: this model's context is {context} tokens, and {more} must "
                    f"be left for the answer: give at most {context - more}"
                )
