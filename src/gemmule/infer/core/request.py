"""What is asked of the engine, and what it answers."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from gemmule.errors import ConfigError
from gemmule.infer.core.sampling import SamplingParams


@dataclass(frozen=True)
class Request:
    """A prompt to go on from.

    Attributes:
        prompt: ids, at least one.
        params: how to choose tokens, and when to stop.
        row: added to the seed: samples of one prompt differ by it.
    """

    prompt: Sequence[int]
    params: SamplingParams
    row: int = 0


@dataclass(frozen=True)
class TokenLogProb:
    """How likely the model found a token, in nats, before penalty, temperature and filters.

    Attributes:
        id: the token.
        logprob: its own.
        top: the likeliest ids with theirs, likeliest first, as many as were asked for.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt.

    Attributes:
        text: without stop strings and control tokens.
        ids: the generated tokens, without a final stop token.
        finish_reason: "stop" (a stop token or string), "length" (max_new_tokens), "context"
            (the model's context is full), "cancelled", or "error" (the model's logits are no
            finite numbers).
        logprobs: of each of `ids`, if they were asked for.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: str
    logprobs: tuple[TokenLogProb, ...] | None = None


@dataclass(frozen=True)
class Event:
    """What a step brought for one request.

    Attributes:
        id: the request, as `submit` named it.
        text: newly settled.
        ids: newly drawn.
        logprobs: of these ids; empty where they were not asked for.
        completion: all of it, with the last event.
    """

    id: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogProb, ...] = ()
    completion: Completion | None = None


@dataclass(frozen=True)
class Score:
    """How likely a continuation is.

    Attributes:
        log_probs: of each of its tokens given all before it, nats.
        greedy: whether each was the likeliest of all.
    """

    log_probs: tuple[float, ...]
    greedy: tuple[bool, ...]


def check_prompt(context: int, length: int) -> int:
    """How many tokens may follow a prompt.

    Args:
        context: the model's, tokens.
        length: the prompt's tokens.

    Raises:
        ConfigError: when there is room for none.
    """
    if length >= context:
        raise ConfigError(
            f"the prompt has {length} tokens; this model's context is {context}, prompt "
            f"and answer together: shorten the prompt to at most {context - 1}"
        )
    return context - length


def check_text(context: int, tokens: int) -> None:
    """Whether a text to be scored fits.

    Args:
        context: the model's, tokens.
        tokens: of the text that are read: its last one is only predicted.

    Raises:
        ConfigError: when it does not.
    """
    if tokens > context:
        raise ConfigError(
            f"the text has {tokens} tokens; this model's context is {context}: score it in parts"
        )


def length_of(ids: Sequence[int], what: str) -> int:
    """How many ids there are, before a look at them: there may be millions.

    Raises:
        ConfigError: when there are none, or this is no sequence of ids.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Sequence):
        raise ConfigError(f"{what} must be a sequence of token ids, got {type(ids).__name__}")
    if not ids:
        raise ConfigError(f"{what} is empty; it needs one token at least, such as <bos>")
    return len(ids)


def checked_ids(ids: Sequence[int], vocab_size: int, what: str) -> tuple[int, ...]:
    """Ids as plain whole numbers.

    Raises:
        ConfigError: for one that the model does not have.
    """
    try:
        plain = tuple(map(operator.index, ids))
    except TypeError:
        raise ConfigError(f"{what} holds something that is no token id (a whole number)") from None
    for token in (min(plain), max(plain)):
        if not 0 <= token < vocab_size:
            raise ConfigError(
                f"{what} has the id {token}; this model's ids are 0 to {vocab_size - 1}"
            )
    return plain
