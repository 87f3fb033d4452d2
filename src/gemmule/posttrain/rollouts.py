"""Rollouts: answers sampled from the model that is trained, as a source of batches.

The engine reads the weights where the optimizer leaves them. Prompts are drawn by (seed, position)
and tokens by (seed, position, sample, token), so the position is two integers, and a run that was
killed continues with the same rollouts, bit for bit.

A source asks for the rollouts of one optimizer step at once and hands them out as the step's
micro-batches. None outlives the weights that it was sampled from.
"""

import hashlib
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemmule.data.batch import Batch
from gemmule.errors import ConfigError, DataError
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.runners.choose import make_batch_runner
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.rewards.protocol import Answer


@dataclass(frozen=True)
class RolloutPrompt:
    """A prompt to be answered.

    Attributes:
        ids: the rendered prompt, which ends where the model's turn begins.
        record: fields that a reward reads, such as the reference answer.
    """

    ids: tuple[int, ...]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Rollout:
    """An answer that a model has given, in ids; text is never encoded again.

    Attributes:
        prompt: ids of the prompt.
        answer: ids of the answer, the stop token included.
        logprobs: log-probability of each token of the answer under the model that gave it, nats.
        text: text of the answer, without control tokens.
        finished: whether the model ended it with a stop token; False: a limit cut it.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool

    def __len__(self) -> int:
        """Number of tokens, prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @classmethod
    def of(cls, prompt: Sequence[int], completion: Completion) -> "Rollout":
        """The rollout of a completion, which leaves its stop token out.

        Raises:
            GemmuleError: when the engine could not answer.
        """
        if completion.error is not None:
            raise completion.error
        assert completion.logprobs is not None
        answer = completion.ids
        logprobs = tuple(token.logprob for token in completion.logprobs)
        if completion.stop_id is not None and completion.stop_logprob is not None:
            answer += (completion.stop_id,)
            logprobs += (completion.stop_logprob.logprob,)
        finished = completion.stop_id is not None
        return cls(tuple(prompt), answer, logprobs, completion.text, finished)


@dataclass(frozen=True)
class Group:
    """The answers to one prompt.

    Attributes:
        prompt: the prompt.
        rollouts: its answers.
        position: number of the prompt in the run's order.
    """

    prompt: RolloutPrompt
    rollouts: tuple[Rollout, ...]
    position: int

    def answers(self) -> list[Answer]:
        """The answers as a reward reads them."""
        return [
            Answer(r.text, self.prompt.record, r.prompt, r.answer, r.finished)
            for r in self.rollouts
        ]


class RolloutSampler:
    """Samples answers from a model with its weights as they are at the moment.

    Args:
        model: model that answers; its weights are read in place.
        tokenizer: its tokenizer.
        params: sampling settings, `n` answers per prompt; they must be on-policy.
        seed: seed of the answers.
        stream: number that tells apart samplers of one seed, so that their answers differ.

    Raises:
        ConfigError: for settings that sample from another distribution than the model's.
    """

    def __init__(
        self,
        model: Gemma,
        tokenizer: Tokenizer,
        params: SamplingParams,
        seed: int,
        stream: int = 0,
    ) -> None:
        if not params.is_on_policy or params.logprobs is None or params.stop:
            raise ConfigError(
                "rollouts must be sampled from the model's own distribution, with "
                "log-probabilities: use SamplingParams.on_policy(max_new_tokens), without "
                "temperature, top_k, top_p, min_p, penalties, biases, stop strings or min_tokens"
            )
        self._model, self._tokenizer, self._params = model, tokenizer, params
        self._seed, self._stream = seed, stream
        self._engine: Engine | None = None

    @property
    def samples(self) -> int:
        """Number of answers per prompt."""
        return self._params.n

    def sample(self, prompts: Sequence[RolloutPrompt], positions: Sequence[int]) -> list[Group]:
        """Answers each prompt; position, sample and weights decide an answer.

        Args:
            prompts: prompts to answer.
            positions: number of each prompt in the run's order.

        Raises:
            ConfigError: for a prompt that the model's context does not hold.
            GemmuleError: when the logits are not finite.
        """
        requests = [
            Request(prompt.ids, self._request_params(position))
            for prompt, position in zip(prompts, positions, strict=True)
        ]
        completions = self._current_engine().complete(requests)
        groups = []
        for number, (prompt, position) in enumerate(zip(prompts, positions, strict=True)):
            own = completions[number * self.samples : (number + 1) * self.samples]
            rollouts = tuple(Rollout.of(prompt.ids, completion) for completion in own)
            groups.append(Group(prompt, rollouts, position))
        return groups

    def _request_params(self, position: int) -> SamplingParams:
        key = struct.pack("<QQQ", self._seed, self._stream, position)
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 2
        return SamplingParams.on_policy(self._params.max_new_tokens, n=self.samples, seed=seed)

    def _current_engine(self) -> Engine:
        """The engine, without anything that was computed with earlier weights."""
        if self._engine is None:  # not before the run has moved the model to its device
            self._engine = Engine(make_batch_runner(self._model), self._tokenizer)
        else:
            self._engine.weights_changed()
        return self._engine


# From the groups of a whole step to its micro-batches.
BuildBatches = Callable[[Sequence[Group]], Sequence[Batch]]


class Rollouts:
    """A `Source`: draws prompts, has them answered, and makes batches of the answers.

    Args:
        prompts: prompts of the training split.
        sampler: answers them.
        build: makes the micro-batches of a step of its groups.
        prompts_per_step: prompts of an optimizer step.
        micro_batches: batches of an optimizer step.
        seed: seed of the prompts' order.

    Raises:
        DataError: when there are no prompts.
    """

    def __init__(
        self,
        prompts: Sequence[RolloutPrompt],
        sampler: RolloutSampler,
        build: BuildBatches,
        *,
        prompts_per_step: int,
        micro_batches: int,
        seed: int,
    ) -> None:
        if not prompts:
            raise DataError("there are no prompts to train on")
        self._prompts, self._sampler, self._build = prompts, sampler, build
        self._prompts_per_step, self._micro_batches = prompts_per_step, micro_batches
        self._seed, self._position = seed, 0
        self._ready: deque[Batch] = deque()

    def next(self) -> Batch:
        """The next micro-batch; the first of a step samples the whole step's rollouts."""
        if not self._ready:
            positions = range(self._position, self._position + self._prompts_per_step)
            prompts = [self._prompts[i] for i in drawn(len(self._prompts), self._seed, positions)]
            batches = self._build(self._sampler.sample(prompts, positions))
            assert len(batches) == self._micro_batches, "no row may outlive the step's weights"
            self._ready.extend(batches)
            self._position += self._prompts_per_step
        return self._ready.popleft()

    def state(self) -> dict[str, Any]:
        """Seed, and number of prompts drawn; between two steps there is nothing else."""
        assert not self._ready, "a step has used only some of its rollouts"
        return {"seed": self._seed, "position": self._position}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `state` returned.

        Raises:
            DataError: when it cannot be a position of this source.
        """
        seed, position = state.get("seed"), state.get("position")
        if (
            seed != self._seed
            or not isinstance(position, int)
            or position < 0
            or position % self._prompts_per_step
        ):
            raise DataError(
                f"{dict(state)} is not a position in rollouts of seed {self._seed} with "
                f"{self._prompts_per_step} prompts per step: resume with the run's own settings"
            )
        self._position = position
        self._ready.clear()


def drawn(count: int, seed: int, positions: Sequence[int]) -> list[int]:
    """The index of the prompt at each position; every epoch has its own order.

    Args:
        count: number of prompts.
        seed: seed of the order.
        positions: numbers of draws, from 0, in ascending order.
    """
    epochs = {position // count for position in positions}
    orders = {e: np.random.default_rng([seed, e]).permutation(count) for e in epochs}
    return [int(orders[position // count][position % count]) for position in positions]
