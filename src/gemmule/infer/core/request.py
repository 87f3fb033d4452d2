"""Requests to the engine, and what it returns. Free of torch."""

import operator
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gemmule.errors import ConfigError, GemmuleError

if TYPE_CHECKING:
    from gemmule.infer.core.constraint import TokenConstraint
    from gemmule.infer.core.sampling import SamplingParams


@dataclass(frozen=True)
class Request:
    """A prompt to be continued.

    Attributes:
        prompt: token ids, at least one.
        params: how tokens are sampled, and when generation stops.
        row: added to the seed, so that several samples of one prompt differ.
        constraint: decides which tokens may come next; None: all may. The engine works on copies
            (`fork`), so a request may be used again. The async engine also takes a future: the
            request waits for it.
        report_progress: whether outputs tell how far the prompt is (`prompt_progress`).
    """

    prompt: Sequence[int]
    params: "SamplingParams"
    row: int = 0
    constraint: "TokenConstraint | Future[TokenConstraint] | None" = None
    report_progress: bool = False


@dataclass(frozen=True)
class TokenLogProb:
    """Log-probability of a token in nats, before all that changes logits or filters them.

    Attributes:
        id: the token.
        logprob: its log-probability.
        top: ids and log-probabilities of the most likely tokens, in descending order.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TokenCounts:
    """Numbers of tokens of one request.

    Attributes:
        prompt: tokens of the prompt.
        cached: tokens of the prompt whose keys and values came from the prefix cache.
        generated: tokens sampled, including a final stop token.
    """

    prompt: int = 0
    cached: int = 0
    generated: int = 0


@dataclass(frozen=True)
class RequestTimes:
    """Times of one request by `time.monotonic`, in seconds; None for what never happened.

    Attributes:
        queued: when the request was made.
        scheduled: when its first token was planned into a step.
        first_token: when its first token was sampled.
        finished: when it ended.
    """

    queued: float | None = None
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(frozen=True)
class Completion:
    """Text generated for one prompt.

    Attributes:
        text: generated text, without stop strings and control tokens.
        ids: generated tokens, without a final stop token.
        finish_reason: "stop" (a stop token or string), "length" (max_new_tokens), "context"
            (the model's context is full), "cancelled", or "error" (see there).
        logprobs: one per token of `ids`, if asked for.
        prompt_logprobs: one per token of the prompt but the first, which nothing predicts, if asked
            for.
        stop_id: the stop token that ended the text; None: something else did.
        stop_logprob: log-probability of that token, if `logprobs` were asked for.
        error: why the finish reason is "error": the logits are not finite, the constraint fails or
            allows no token, or the engine failed. Ignored by `==`.
        counts: numbers of tokens; ignored by `==`, since they depend on what was cached.
        times: when things happened; ignored by `==`.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogProb, ...] | None = None
    prompt_logprobs: tuple[TokenLogProb, ...] | None = None
    stop_id: int | None = None
    stop_logprob: TokenLogProb | None = None
    error: GemmuleError | None = field(default=None, compare=False)
    counts: TokenCounts = field(default=TokenCounts(), compare=False)
    times: RequestTimes = field(default=RequestTimes(), compare=False)


@dataclass(frozen=True)
class Score:
    """Log-probabilities of a continuation.

    Attributes:
        log_probs: log-probability of each token given all before it, nats.
        greedy: whether each token was the most likely one.
    """

    log_probs: tuple[float, ...]
    greedy: tuple[bool, ...]


@dataclass(frozen=True)
class PromptProgress:
    """How far the prompt of a sample has been run.

    Attributes:
        total: tokens of the prompt.
        cached: those of them that were found in the prefix cache.
        processed: tokens whose keys and values are there, cached ones included.
    """

    total: int
    cached: int
    processed: int


@dataclass(frozen=True)
class RequestOutput:
    """Progress of one sample of a request in one step.

    Attributes:
        request_id: the request, as `submit` named it.
        sample: number of the sample, from 0; a request has `n` of them.
        text: text that was completed in this step.
        ids: tokens that were sampled in this step.
        logprobs: one per token of `ids`; empty if not asked for.
        prompt_logprobs: those of tokens of the prompt that ran in this step, if asked for.
        completion: the whole result, with the last output of a sample.
        score: the result of a scoring request.
        error: why the engine ended the request, if the engine failed.
        unfinished: number of other samples of the request that have not ended.
        prompt_progress: how far the prompt is after this step, until it has run, if asked for.
        times: when the sample was queued, scheduled and given its first token, with that token.
    """

    request_id: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogProb, ...] = ()
    prompt_logprobs: tuple[TokenLogProb, ...] = ()
    completion: Completion | None = None
    score: Score | None = None
    error: GemmuleError | None = None
    sample: int = 0
    unfinished: int = 0
    prompt_progress: PromptProgress | None = None
    times: RequestTimes | None = field(default=None, compare=False)

    @property
    def finished(self) -> bool:
        """Whether this is the request's last output."""
        ended = not (self.completion is None and self.score is None and self.error is None)
        return ended and not self.unfinished


def check_prompt(context: int, length: int, wanted: int = 1) -> int:
    """Returns how many tokens may follow a prompt.

    Args:
        context: context length of the model.
        length: length of the prompt.
        wanted: number of tokens that shall follow; there is room for one, if for any.

    Raises:
        ConfigError: if the prompt fills the context.
    """
    most = context - min(wanted, 1)
    if length > most:
        raise ConfigError(
            f"the prompt has {length} tokens; this model's context is {context}, prompt "
            f"and answer together: shorten the prompt to at most {most}"
        )
    return context - length


def check_text(context: int, tokens: int) -> None:
    """Checks that a text to be scored fits.

    Args:
        context: context length of the model.
        tokens: number of tokens that are read: all but the last, which is only predicted.

    Raises:
        ConfigError: if it does not fit.
    """
    if tokens > context:
        raise ConfigError(
            f"the text has {tokens} tokens; this model's context is {context}: score it in parts"
        )


def length_of(ids: Sequence[int], what: str) -> int:
    """Returns the number of ids without looking at them: there may be millions.

    Raises:
        ConfigError: if it is empty, or not a sequence of ids.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise ConfigError(f"{what} must be a sequence of token ids, got {type(ids).__name__}")
    if not ids:
        raise ConfigError(f"{what} is empty; it needs one token at least, such as <bos>")
    return len(ids)


def checked_ids(ids: Sequence[int], vocab_size: int, what: str) -> tuple[int, ...]:
    """Returns ids as plain integers.

    Raises:
        ConfigError: for an id that the model does not have.
    """
    try:
        plain = tuple(map(operator.index, ids))
    except TypeError:
        raise ConfigError(
            f"{what} holds something that is not a token id (a whole number)"
        ) from None
    for token in (min(plain), max(plain)):
        if not 0 <= token < vocab_size:
            raise ConfigError(
                f"{what} has the id {token}; this model's ids are 0 to {vocab_size - 1}"
            )
    return plain
