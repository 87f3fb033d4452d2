"""From logits to the next token of one request.

Shapes: V vocabulary, K candidates, S allowed ids.
"""

import copy
import functools
import hashlib
import math
import secrets
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gemmule.errors import GemmuleError
from gemmule.infer.core.constraint import Mask, allowed_ids
from gemmule.infer.core.sampling import NUM_SEEDS, SamplingParams, candidates, top_logits, weigh


def penalize(logits_V: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Makes `ids` less likely, as CTRL (arXiv 1909.05858) and transformers do."""
    logits = logits_V[ids]
    logits = torch.where(logits < 0, logits * penalty, logits / penalty)
    return logits_V.index_put((ids,), logits)


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
        self._seed = (seed + row) % NUM_SEEDS
        self._draws = 0
        self._changes_logits = params.changes_logits
        # These tensors are replaced, never written to: a fork shares them.
        seen = prompt if params.repetition_penalty != 1 else ()
        self._seen = torch.tensor(seen, dtype=torch.long).unique()
        self._ids, self._counts = torch.empty(0, dtype=torch.long), torch.empty(0)  # of the output
        self._bias_ids = torch.tensor([token for token, _ in params.biases], dtype=torch.long)
        self._biases = torch.tensor([value for _, value in params.biases])

    def __call__(self, logits_V: Tensor, mask_W: Mask | None = None) -> int:
        """Samples the next token from a whole row of logits.

        Args:
            logits_V: the logits.
            mask_W: mask of the allowed ids, at least one; None: all.

        Raises:
            NotFinite: if the largest logit is not finite.
        """
        if not self._changes_logits:
            return self._draw(logits_V, mask_W)
        token = self._draw(self._changed(logits_V.cpu()), mask_W)
        self._count(token)
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

    def _changed(self, logits_V: Tensor) -> Tensor:
        """Applies penalties and biases."""
        params = self.params
        if params.repetition_penalty != 1:
            logits_V = penalize(logits_V, self._seen, params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            penalties = self._counts * params.frequency_penalty + params.presence_penalty
            logits_V = logits_V.index_put((self._ids,), logits_V[self._ids] - penalties)
        if len(self._bias_ids):
            logits = logits_V[self._bias_ids] + self._biases
            logits_V = logits_V.index_put((self._bias_ids,), logits)
        return logits_V

    def _count(self, token: int) -> None:
        """Counts a sampled token for the penalties."""
        if self.params.repetition_penalty != 1 and token not in self._seen:
            self._seen = torch.cat((self._seen, torch.tensor([token])))
        if not (self.params.frequency_penalty or self.params.presence_penalty):
            return
        same = self._ids == token
        if bool(same.any()):
            self._counts = self._counts + same
        else:
            self._ids = torch.cat((self._ids, torch.tensor([token])))
            self._counts = torch.cat((self._counts, torch.ones(1)))

    def _draw(self, logits_V: Tensor, mask_W: Mask | None) -> int:
        ids_S = None
        if mask_W is not None:
            ids_S = torch.from_numpy(allowed_ids(mask_W, len(logits_V)))
            logits_V = logits_V.cpu()[ids_S]
        if self.params.greedy:
            place = int(logits_V.argmax())
            if not math.isfinite(logits_V[place]):
                raise NotFinite
            return place if ids_S is None else int(ids_S[place])
        if ids_S is None:
            return self._race(*candidates(logits_V.cpu(), self.params))
        if self.params.top_k is not None:  # as from the top k alone, even if fewer are allowed
            logits_K, places_K = top_logits(logits_V.float(), self.params.top_k)
            return self.among(logits_K, ids_S[places_K])
        weights, places = candidates(logits_V, self.params)
        return self._race(weights, ids_S if places is None else ids_S[places])

    def _race(self, weights: Tensor, ids: Tensor | None) -> int:
        weights_K = weights.numpy()
        if not 0 < weights_K.max(initial=0.0) < math.inf:  # NaN is caught, too
            raise NotFinite
        seed = struct.pack("<QQ", self._seed, self._draws)
        self._draws += 1
        steps = _steps(len(weights_K)) if ids is None else _step(ids)
        place = _earliest(weights_K, _random_numbers(seed, steps))
        return place if ids is None else int(ids[place])


def _earliest(weights_K: np.ndarray, numbers_K: np.ndarray) -> int:
    """Returns where -log(number) / weight is smallest, with few logarithms."""
    likeliest = int(weights_K.argmax())
    time = -np.log(numbers_K[likeliest]) / weights_K[likeliest]
    # As 1 - u <= -log u, an earlier time needs 1 - u < time * weight: few have it.
    left = np.flatnonzero(1.0 - numbers_K <= time * (1 + 1e-9) * weights_K)
    left = left[weights_K[left] > 0]
    return int(left[(-np.log(numbers_K[left]) / weights_K[left]).argmin()])


def _step(ids: Tensor) -> np.ndarray:
    """Returns how far into the sequence of SplitMix64 each id is."""
    return ids.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


@functools.lru_cache(maxsize=4)
def _steps(count: int) -> np.ndarray:
    """Returns the same of the first `count` ids."""
    return _step(torch.arange(count))


def _random_numbers(seed: bytes, steps: np.ndarray) -> np.ndarray:
    """Returns uniform random numbers up to 1, fp64, from SplitMix64 at the places of ids."""
    start = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "little")
    x = steps + np.uint64(start)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    x >>= np.uint64(11)
    return (x + 0.5) * 2.0**-53
