"""From logits to the next token: settings, filters and sampler.

Shapes: V vocabulary, K candidates.
"""

import copy
import dataclasses
import hashlib
import math
import secrets
import struct
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from gemmule.config import nearest
from gemmule.errors import ConfigError, GemmuleError

# Below this a division by the temperature leaves fp32; the result is greedy anyway.
_GREEDY_BELOW = 1e-5
_SEEDS = 2**63
MAX_LOGPROBS = 20


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are sampled, and when generation stops. Filters apply in the order listed.

    Attributes:
        max_new_tokens: maximum number of tokens to generate, at least 1.
        temperature: divisor of the logits; 0 takes the most likely token (greedy).
        top_k: number of most likely tokens to keep; None keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p, in (0, 1].
        min_p: keep tokens at least min_p times as likely as the most likely one, in [0, 1].
        seed: seed of the sampler; row i of a batch uses seed + i. None: different every time.
        stop: strings that end the text and are not part of it.
        repetition_penalty: before all else, positive logits of ids in prompt and output are divided
            by it and negative ones multiplied, above 0; 1 changes nothing.
        logprobs: number of most likely ids, 0 to 20, to return with their log-probabilities, and
            with the sampled token's, at each position; None: none. They are the model's own,
            before penalty, temperature and filters.

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

    def __post_init__(self) -> None:
        _check_int("max_new_tokens", self.max_new_tokens, 1)
        _check_float("temperature", self.temperature, "0 (greedy) or more", 0.0, math.inf)
        _check_float("top_p", self.top_p, "above 0 and at most 1 (1 keeps all)", 0.0, 1.0)
        _check_float("min_p", self.min_p, "from 0 (keeps all) to 1", 0.0, 1.0)
        if self.top_p == 0:
            raise ConfigError("top_p is 0; it must be above 0 and at most 1 (1 keeps all)")
        if self.top_k is not None:
            _check_int("top_k", self.top_k, 1, " (leave it out to keep all)")
        if self.seed is not None:
            _check_int("seed", self.seed, 0)
            if self.seed >= _SEEDS:
                raise ConfigError(f"seed is {self.seed}; it must be below 2**63")
        _check_float("repetition_penalty", self.repetition_penalty, "above 0", 0.0, math.inf)
        if self.repetition_penalty == 0:
            raise ConfigError("repetition_penalty is 0; it must be above 0 (1 changes nothing)")
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, " (leave it out for none)")
            if self.logprobs > MAX_LOGPROBS:
                raise ConfigError(f"logprobs is {self.logprobs}; it must be at most 20")
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

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < _GREEDY_BELOW or self.top_k == 1


def _check_int(name: str, value: Any, least: int, hint: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, {least} or more{hint}")


def _check_float(name: str, value: Any, allowed: str, least: float, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; it must be a number, {allowed}")


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


def penalize(logits_V: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Makes `ids` less likely, as CTRL (arXiv 1909.05858) and transformers do."""
    logits = logits_V[ids]
    logits = torch.where(logits < 0, logits * penalty, logits / penalty)
    return logits_V.index_put((ids,), logits)


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


class NotFinite(GemmuleError):
    """The logits are not finite, so that no token can be sampled."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits are not finite: its activations overflow, or its weights are "
            "damaged; float16 overflows sooner than bfloat16"
        )


class Sampler:
    """Samples the tokens of one request; seed and logits decide them, on any device.

    Sampling is a race: each candidate's time is an exponential random number over its weight, and
    the smallest wins. The random numbers depend on the seed, on the number of tokens sampled
    before, and on the candidate's id, not on the other candidates.
    """

    def __init__(self, params: SamplingParams, row: int = 0, prompt: Sequence[int] = ()) -> None:
        """Starts before the first token.

        Args:
            params: settings of the request.
            row: number added to the seed.
            prompt: ids of the prompt, for the repetition penalty.
        """
        self.params = params
        seed = secrets.randbits(62) if params.seed is None else params.seed
        self._seed = (seed + row) % _SEEDS
        self._draws = 0
        self._penalizes = params.repetition_penalty != 1
        self._seen = torch.tensor(prompt if self._penalizes else (), dtype=torch.long).unique()

    def __call__(self, logits_V: Tensor) -> int:
        """Samples the next token from a whole row of logits.

        Raises:
            NotFinite: if the largest logit is not finite.
        """
        if not self._penalizes:
            return self._draw(logits_V)
        logits_V = logits_V.cpu()
        token = self._draw(penalize(logits_V, self._seen, self.params.repetition_penalty))
        if token not in self._seen:
            self._seen = torch.cat((self._seen, torch.tensor([token])))
        return token

    def among(self, logits_K: Tensor, ids_K: Tensor) -> int:
        """Samples the same token from the top-k logits alone, in descending order."""
        if not math.isfinite(logits_K[0]):
            raise NotFinite
        if self.params.greedy:
            return int(ids_K[0])
        return self._race(weigh(logits_K.cpu(), self.params), ids_K.cpu())

    def fork(self) -> "Sampler":
        """Returns a sampler that continues as this one would, without changing this one."""
        return copy.copy(self)

    def _draw(self, logits_V: Tensor) -> int:
        if not self.params.greedy:
            return self._race(*candidates(logits_V.cpu(), self.params))
        token = int(logits_V.argmax())
        if not math.isfinite(logits_V[token]):
            raise NotFinite
        return token

    def _race(self, weights: Tensor, ids: Tensor | None) -> int:
        if not 0 < float(weights.sum()) < math.inf:
            raise NotFinite
        kept = weights.nonzero()[:, 0]
        ids = kept if ids is None else ids[kept]
        seed = struct.pack("<QQ", self._seed, self._draws)
        self._draws += 1
        times = _random_times(seed, ids.numpy()) / weights[kept].numpy()
        return int(ids[int(times.argmin())])


def _random_times(seed: bytes, ids: np.ndarray) -> np.ndarray:
    """Returns exponential random numbers, fp64, one per id, from SplitMix64 at the id's place."""
    start = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "little")
    x = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return -np.log(((x >> np.uint64(11)) + 0.5) * 2.0**-53)
