"""Fields that say how to sample, which the bodies of several routes share."""

import sys
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from gemmule.errors import ConfigError
from gemmule.infer.core.sampling import NUM_SEEDS, SamplingParams
from gemmule.serve.api_errors import ApiError
from gemmule.serve.request_body import MAX_ITEMS, ApiModel
from gemmule.serve.settings import ServeSettings

# Of requests that say nothing, as OpenAI has them; /v1/models shows them.
DEFAULTS: dict[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}

_MOST_TOKENS = 2**63 - 1  # some clients send the largest integer they know for "no limit"
_MAX_REPETITION = 100.0  # more, or less than its inverse, makes logits overflow


def _stops(value: Any) -> Any:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(s, str) and s for s in values):
        raise PydanticCustomError("stop", "it must be one text or several, none empty")
    return tuple(values)


def _biases(value: Any) -> Any:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise PydanticCustomError("bias", "it must be an object of token ids and biases")
    if len(value) > MAX_ITEMS:
        raise PydanticCustomError("bias", "it must have at most {most} ids", {"most": MAX_ITEMS})
    pairs = []
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10):
            raise PydanticCustomError("bias", "it must have token ids as its keys")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise PydanticCustomError("bias", "it must have numbers as its values")
        if abs(bias) > sys.float_info.max:  # an integer, which no float can be
            raise PydanticCustomError("bias", "it must have numbers from -100 to 100 as its values")
        pairs.append((int(key), float(bias)))
    return tuple(pairs)


Stops = Annotated[
    tuple[str, ...],
    BeforeValidator(_stops, json_schema_input_type=str | list[str] | None),
]
Biases = Annotated[
    tuple[tuple[int, float], ...],
    BeforeValidator(_biases, json_schema_input_type=dict[str, float] | None),
]


class SamplingFields(ApiModel):
    """How an answer is sampled, under OpenAI's and vLLM's names; null is as good as nothing."""

    temperature: float | None = Field(None, description="Divides the logits; 0 is greedy. 1")
    top_p: float | None = Field(None, description="Above 0 and at most 1, which keeps all. 1")
    top_k: int | None = Field(None, description="Most likely tokens to keep; 0 or -1: all. All")
    min_p: float | None = Field(
        None, description="Keep tokens with this fraction of the top token's probability. 0"
    )
    seed: int | None = Field(None, description="From 0; the same seed gives the same answer")
    n: int | None = Field(None, description="Number of answers; answer i uses seed + i. 1")
    stop: Stops = Field((), description="Texts that end the answer and are not part of it")
    presence_penalty: float | None = Field(None, description="-2 to 2. 0")
    frequency_penalty: float | None = Field(None, description="-2 to 2. 0")
    repetition_penalty: float | None = Field(None, description="0.01 to 100; of the prompt too. 1")
    logit_bias: Biases = Field(
        (), description="-100 to 100 by token id", json_schema_extra={"default": None}
    )
    min_tokens: int | None = Field(None, description="No end before this many tokens. 0")
    ignore_eos: bool | None = Field(None, description="Whether stop tokens are never sampled")
    prompt_logprobs: int | None = Field(
        None, description="0 to 20: most likely tokens to return for each token of the prompt"
    )
    return_token_ids: bool | None = Field(None, description="Whether to return token ids too")

    def sampling_params(
        self,
        settings: ServeSettings,
        *,
        max_tokens: int | None,
        room: int,
        logprobs: int | None,
        param: str = "max_tokens",
        least_tokens: int = 1,
    ) -> SamplingParams:
        """Checks the values against the server's limits.

        Args:
            settings: limits of the server.
            max_tokens: limit of the answer; None: `default_max_tokens`, or the rest of the context.
            room: tokens that the context has left.
            logprobs: number of most likely tokens to return; None: no log-probabilities.
            param: name that the limit has in this protocol.
            least_tokens: smallest limit.

        Raises:
            ApiError: 400 for a value out of range.
        """
        if max_tokens is None:
            max_tokens = min(room, settings.default_max_tokens or room)
            if self.min_tokens is not None and self.min_tokens > max_tokens:
                raise _wrong("min_tokens", self.min_tokens, f"at most {max_tokens}")
        elif max_tokens < least_tokens:
            raise _wrong(param, max_tokens, f"{least_tokens} or more")
        elif max_tokens > _MOST_TOKENS:
            raise _wrong(param, max_tokens, f"at most {_MOST_TOKENS}")
        n = 1 if self.n is None else self.n
        if not 1 <= n <= settings.max_n:
            raise _wrong("n", n, f"from 1 to {settings.max_n}")
        if len(self.stop) > settings.max_stop:
            raise _wrong("stop", f"{len(self.stop)} texts", f"at most {settings.max_stop}")
        if self.seed is not None and not 0 <= self.seed < NUM_SEEDS - settings.max_n:
            raise _wrong("seed", self.seed, f"from 0 to {NUM_SEEDS - settings.max_n - 1}")
        penalty = _or(self.repetition_penalty, 1.0)
        if not 1 / _MAX_REPETITION <= penalty <= _MAX_REPETITION:
            allowed = f"from {1 / _MAX_REPETITION:g} to {_MAX_REPETITION:g}"
            raise _wrong("repetition_penalty", penalty, allowed)
        values: dict[str, Any] = {
            "max_new_tokens": max_tokens,
            **{name: _or(getattr(self, name), value) for name, value in DEFAULTS.items()},
            "top_k": None if self.top_k in (None, 0, -1) else self.top_k,
            "seed": self.seed,
            "stop": self.stop,
            "n": n,
            "logit_bias": self.logit_bias,
            "min_tokens": _or(self.min_tokens, 0),
            "ignore_eos": bool(self.ignore_eos),
            "prompt_logprobs": self.prompt_logprobs,
            "logprobs": logprobs,
        }
        try:
            return SamplingParams(**values)
        except ConfigError as e:
            message = str(e).replace("max_new_tokens", param)
            field = message.split(" ", 1)[0]
            raise ApiError(400, message, param=field if field in values else None) from None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _wrong(name: str, value: object, allowed: str) -> ApiError:
    return ApiError(400, f"{name} is {value!s:.40}; it must be {allowed}", param=name)
