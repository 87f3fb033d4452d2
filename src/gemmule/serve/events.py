"""What happens in a generation, in terms of no protocol."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gemmule.infer.core.request import Completion, TokenLogProb


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text and tokens that a sample gained.

    Attributes:
        sample: number of the sample among all of the HTTP request.
        text: its new text; empty where tokens have completed no character, or may begin a stop
            string.
        ids: its new tokens, without a stop token.
        logprobs: one per token, if asked for.
        prompt_logprobs: those of tokens of the prompt, if asked for.
    """

    sample: int
    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogProb, ...] = ()
    prompt_logprobs: tuple[TokenLogProb, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a tool call.

    Attributes:
        sample: number of the sample.
        index: number of the call within the sample's answer.
        id: the call's id, with its first part only.
        name: name of the tool, with the first part only.
        arguments: further text of the arguments, which are JSON in the end.
    """

    sample: int
    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How far a prompt has been run.

    Attributes:
        sample: number of the sample.
        total: tokens of the prompt.
        cached: those of them that were found in the prefix cache.
        processed: tokens that are done, cached ones included.
        seconds: time since the request came.
    """

    sample: int
    total: int
    cached: int
    processed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SampleFinished:
    """A sample has ended.

    Attributes:
        sample: number of the sample.
        finish_reason: "stop", "length" or "tool_calls".
        completion: everything that was generated for it.
    """

    sample: int
    finish_reason: str
    completion: Completion


Event = TextDelta | ToolCallDelta | PromptProgress | SampleFinished


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens of an HTTP request.

    Attributes:
        prompt: tokens of its prompts; samples share theirs.
        cached: those of them that were found in the prefix cache.
        generated: tokens sampled, stop tokens included.
    """

    prompt: int
    cached: int
    generated: int

    def openai(self) -> dict[str, object]:
        """`usage` of OpenAI's answers."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def finish_reason(completion: Completion) -> str:
    """The reason in OpenAI's terms: a full context is a limit as well."""
    return "length" if completion.finish_reason == "context" else completion.finish_reason


def timings(completions: Iterable[Completion]) -> dict[str, float] | None:
    """Times of completions of one prompt under llama.cpp's names; None if none has begun.

    Cached tokens are not among those of the prompt.
    """
    completions = [c for c in completions if c.times.scheduled is not None]
    if not completions:
        return None
    first = completions[0]
    assert first.times.scheduled is not None
    ends = [c.times.finished for c in completions if c.times.finished is not None]
    end = max(ends, default=first.times.scheduled)
    began = end if first.times.first_token is None else first.times.first_token
    return {
        "cache_n": first.counts.cached,
        **_pace("prompt", first.counts.prompt - first.counts.cached, began - first.times.scheduled),
        **_pace("predicted", sum(c.counts.generated for c in completions), end - began),
    }


def timings_so_far(usage: Usage, prompt_seconds: float, seconds: float) -> dict[str, float]:
    """The same of an answer that is still being made.

    Args:
        usage: numbers of tokens so far.
        prompt_seconds: time until the first token.
        seconds: time since then.
    """
    return {
        "cache_n": usage.cached,
        **_pace("prompt", usage.prompt - usage.cached, prompt_seconds),
        **_pace("predicted", usage.generated, seconds),
    }


def _pace(name: str, tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": round(seconds * 1e3, 3),
        f"{name}_per_token_ms": round(seconds * 1e3 / tokens, 3) if tokens else 0.0,
        f"{name}_per_second": round(tokens / seconds, 3) if seconds > 0 else 0.0,
    }


def merged(deltas: Sequence[TextDelta]) -> TextDelta:
    """Deltas of one sample as one."""
    if len(deltas) == 1:
        return deltas[0]
    return TextDelta(
        deltas[0].sample,
        "".join(d.text for d in deltas),
        tuple(i for d in deltas for i in d.ids),
        tuple(p for d in deltas for p in d.logprobs),
        tuple(p for d in deltas for p in d.prompt_logprobs),
    )
