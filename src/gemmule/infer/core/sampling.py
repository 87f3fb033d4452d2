"""Settings of a generation, and the filters that leave the candidates for the next token.

Shapes: V vocabulary, K candidates.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from gemmule.config import nearest
from gemmule.errors import ConfigError

# Below this a division by the temperature leaves fp32; the result is greedy anyway.
_GREEDY_BELOW = 1e-5
NUM_SEEDS = 2**63
MAX_LOGPROBS = 20
MAX_PENALTY = 2.0  # presence and frequency penalties, as in OpenAI's API
MAX_BIAS = 100.0  # as there

LogitBias = Mapping[int, float] | Sequence[tuple[int, float]]


class SamplingSettings(TypedDict, total=False):
    """Keyword settings of every method that generates, as in SamplingParams."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    repetition_penalty: float
    logprobs: int | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: LogitBias
    min_tokens: int
    ignore_eos: bool
    n: int
    prompt_logprobs: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are sampled, and when generation stops.

    Logits are changed by repetition_penalty, frequency_penalty, presence_penalty and logit_bias, in
    this order. Then come the constraint of the request, min_tokens and ignore_eos, temperature,
    top_k, top_p and min_p.

    Attributes:
        max_new_tokens: maximum number of tokens to generate; 0: none, for a request that only
            wants the log-probabilities of its prompt.
        temperature: divisor of the logits; 0 takes the most likely token (greedy).
        top_k: number of most likely tokens to keep; None keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p, in (0, 1].
        min_p: keep tokens at least min_p times as likely as the most likely one, in [0, 1].
        seed: seed of the sampler; prompt i of a batch, or sample i of `n`, uses seed + i. None:
            different every time.
        stop: strings that end the text and are not part of it.
        repetition_penalty: positive logits of ids in prompt and output are divided by it and
            negative ones multiplied, above 0; 1 changes nothing.
        logprobs: number of most likely ids, 0 to 20, to return with their log-probabilities, and
            with the sampled token's, at each position; None: none. They are the model's own,
            before all that changes logits or filters them.
        presence_penalty: subtracted from the logits of ids in the output, -2 to 2, as in OpenAI's
            API; the prompt does not count.
        frequency_penalty: the same, times how often the id occurred in the output.
        logit_bias: what to add to the logits of ids, -100 to 100, by id; 100 nearly always forces
            an id and -100 bans it.
        min_tokens: number of tokens until which no stop token is sampled and no stop string ends
            the text, at most max_new_tokens.
        ignore_eos: whether no stop token is sampled at all; stop strings still end the text.
        n: number of samples. They share the prompt's pages, and sample i is what a request of one
            sample with seed + i is.
        prompt_logprobs: number of most likely ids, 0 to 20, to return with the log-probabilities of
            the prompt's tokens; None: none. The prefix cache is not used then.

    Raises:
        ConfigError: for a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: LogitBias = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int = 1
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 0)
        _check_int("n", self.n, 1)
        self._check_end()
        self._check_changes_of_logits()
        _check_float("temperature", self.temperature, "0 (greedy) or more", 0.0, math.inf)
        _check_float("top_p", self.top_p, "above 0 and at most 1 (1 keeps all)", 0.0, 1.0)
        _check_float("min_p", self.min_p, "from 0 (keeps all) to 1", 0.0, 1.0)
        if self.top_p == 0:
            raise ConfigError("top_p is 0; it must be above 0 and at most 1 (1 keeps all)")
        if self.top_k is not None:
            _check_int("top_k", self.top_k, 1, " (leave it out to keep all)")
        if self.seed is not None:
            _check_int("seed", self.seed, 0)
            if self.seed >= NUM_SEEDS:
                raise ConfigError(f"seed is {self.seed}; it must be below 2**63")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None:
                _check_int(name, count, 0, " (leave it out for none)")
                if count > MAX_LOGPROBS:
                    raise ConfigError(f"{name} is {count}; it must be at most {MAX_LOGPROBS}")

    def _check_changes_of_logits(self) -> None:
        _check_float("repetition_penalty", self.repetition_penalty, "above 0", 0.0, math.inf)
        if self.repetition_penalty == 0:
            raise ConfigError("repetition_penalty is 0; it must be above 0 (1 changes nothing)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check_float(name, value, "from -2 to 2 (0 changes nothing)", -MAX_PENALTY, MAX_PENALTY)
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def _check_end(self) -> None:
        _check_int("min_tokens", self.min_tokens, 0)
        if self.min_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_tokens is {self.min_tokens}; it must be at most max_new_tokens, which is "
                f"{self.max_new_tokens}"
            )
        if not isinstance(self.ignore_eos, bool):
            raise ConfigError(f"ignore_eos is {self.ignore_eos!r}; it must be true or false")
        several = isinstance(self.stop, Sequence | set | frozenset)
        if not several:
            raise ConfigError(f"stop is {self.stop!r}; it must be one or more non-empty strings")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(s, str) and s for s in stops):
            raise ConfigError(f"stop is {self.stop!r}; it must be one or more non-empty strings")
        object.__setattr__(self, "stop", stops)

    @classmethod
    def of(cls, settings: SamplingSettings) -> "SamplingParams":
        """Checks keyword settings.

        Raises:
            ConfigError: for an unknown name (the nearest right one is given) or a bad value.
        """
        allowed = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in allowed:
                raise ConfigError(f"unknown setting {name!r}; {nearest(name, allowed)}")
        return cls(**settings)

    @classmethod
    def on_policy(
        cls, max_new_tokens: int, *, n: int = 1, seed: int | None = None
    ) -> "SamplingParams":
        """Samples from the model's own distribution, with log-probabilities of the tokens.

        The defaults do not: a temperature, top-p and penalties renormalize the distribution, so
        that the log-probabilities are not those of what was sampled from.
        """
        return cls(
            max_new_tokens=max_new_tokens, temperature=1.0, top_p=1.0, seed=seed, logprobs=0, n=n
        )

    @property
    def is_on_policy(self) -> bool:
        """Whether tokens are sampled from the model's own distribution, unchanged."""
        return (
            self.temperature == 1
            and self.top_k is None
            and self.top_p == 1
            and self.min_p == 0
            and not self.changes_logits
            and not self.min_tokens
            and not self.ignore_eos
        )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < _GREEDY_BELOW or self.top_k == 1

    @property
    def changes_logits(self) -> bool:
        """Whether a penalty or a bias changes logits, so that the top k are not those to keep."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """Pairs of id and bias, by ascending id."""
        return tuple(self.logit_bias)  # type: ignore[arg-type]  # normalized when it was checked


def _check_int(name: str, value: Any, least: int, hint: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, {least} or more{hint}")


def _check_float(name: str, value: Any, allowed: str, least: float, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; it must be a number, {allowed}")


def _checked_bias(bias: Any) -> tuple[tuple[int, float], ...]:
    """Returns pairs of id and bias, by ascending id."""
    try:
        pairs = [(i, value) for i, value in (bias.items() if isinstance(bias, Mapping) else bias)]
    except (TypeError, ValueError):
        raise ConfigError(
            f"logit_bias is {bias!r}; it must give a number for each of some ids, such as {{7: -5}}"
        ) from None
    for token, value in pairs:
        _check_int("an id of logit_bias", token, 0)
        _check_float(
            f"logit_bias of id {token}", value, "from -100 (bans) to 100", -MAX_BIAS, MAX_BIAS
        )
    if len({token for token, _ in pairs}) < len(pairs):
        raise ConfigError("logit_bias has an id twice; give each id once")
    return tuple(sorted((token, float(value)) for token, value in pairs))


def top_logits(logits_V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the largest `count` logits and their ids, in descending order; ties by smaller id."""
    if count == 1:
        id_1 = logits_V.argmax(-1, keepdim=True)  # of equal ones the first, by its contract
        return logits_V[id_1], id_1
    logits_K, ids_K = logits_V.topk(min(count, len(logits_V)))
    if bool(logits_K.isnan().any()):
        return logits_K, ids_K
    least = logits_K[-1]
    above = (logits_V > least).nonzero()[:, 0]
    level = (logits_V == least).nonzero()[: len(ids_K) - len(above), 0]
    ids_K = torch.cat((above, level)).sort()[0]
    logits_K, order = logits_V[ids_K].sort(descending=True, stable=True)
    return logits_K, ids_K[order]


def candidates(logits_V: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Returns the candidates that the filters leave.

    Args:
        logits_V: logits of one position, on the CPU.
        params: settings with a temperature above 0.

    Returns:
        Unnormalized weights [K], zero for what the filters removed, and the ids [K] they belong to
        (None: every id in order).
    """
    if params.top_k is not None and params.top_k < len(logits_V):
        logits_K, ids = top_logits(logits_V.float(), params.top_k)
        return weigh(logits_K, params), ids
    weights = _softmax(logits_V, params)
    if params.top_p == 1:
        return _min_p(weights, params), None
    weights, ids = _nucleus(weights, params.top_p)
    return _min_p(weights, params), ids


def weigh(logits_K: Tensor, params: SamplingParams) -> Tensor:
    """Returns the weights of the top-k logits, in descending order: zero for filtered ones."""
    weights = _softmax(logits_K, params)
    if params.top_p < 1:
        # A token stays while those before it sum to less than p: the first always does.
        before = weights.cumsum(-1, dtype=torch.float64) - weights
        weights = weights.masked_fill(before >= params.top_p, 0.0)
    return _min_p(weights, params)


def _softmax(logits_K: Tensor, params: SamplingParams) -> Tensor:
    # The largest becomes 0, so that no temperature can overflow.
    return ((logits_K.float() - logits_K.max()) / params.temperature).softmax(-1)


def _nucleus(weights_V: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Returns the most likely tokens that sum to `top_p`, by id; of ties the smaller ids stay."""
    weights = weights_V.numpy()
    values = np.sort(weights)[::-1]  # far faster than sorting the ids
    before = np.cumsum(values, dtype=np.float64) - values
    count = max(1, int((before < top_p).sum()))
    least = values[count - 1]
    level = np.flatnonzero(weights == least)
    spare = len(level) - (count - int((weights > least).sum()))
    kept = weights >= least
    kept[level[len(level) - spare :]] = False
    ids = torch.from_numpy(np.flatnonzero(kept))
    return weights_V[ids], ids


def _min_p(weights: Tensor, params: SamplingParams) -> Tensor:
    if params.min_p == 0:
        return weights
    return weights.masked_fill(weights < params.min_p * weights.max(), 0.0)
