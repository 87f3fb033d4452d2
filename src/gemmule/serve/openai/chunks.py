"""Chunks of a stream: nearly all is constant bytes around one text escaped as JSON."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from gemmule.serve.api_errors import ApiError
from gemmule.serve.events import (
    Event,
    PromptProgress,
    SampleFinished,
    TextDelta,
    ToolCallDelta,
    timings,
)
from gemmule.serve.generation import Generation
from gemmule.serve.openai.schemas import CommonFields
from gemmule.serve.pace import Pace
from gemmule.serve.sse import DONE, data_event, json_bytes

# In llama.cpp's form: b, its build, and what tells it apart.
_FINGERPRINT = f"b{metadata.version('gemmule')}-gemmule"


def answer_fields(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """Fields that all chunks of a stream share, and with which every answer begins.

    Args:
        kind: OpenAI's name of the object.
        prefix: beginning of its id.
        model: name of the model.
    """
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": _FINGERPRINT,
    }


def energy_answer(generation: Generation) -> dict[str, float | str | None] | None:
    """`energy` of an answer, when all its samples have ended."""
    energy = generation.energy()
    return None if energy is None else energy.answer()


def answer_size(num_logprobs: int | None) -> int:
    """About how many characters an answer has for each token.

    Args:
        num_logprobs: number of most likely tokens; None: no log-probabilities.
    """
    return 4 if num_logprobs is None else 80 * (1 + num_logprobs)


class ChunkStream(ABC):
    """Writes a stream of chunks with one id and time; a `StreamWriter`.

    Attributes:
        generation: what the stream tells of.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        generation: Generation,
        body: CommonFields,
        text_field: str,
        text_end: str,
        *,
        plain: bool,
    ) -> None:
        """Prepares the constant bytes.

        Args:
            fields: fields of every chunk.
            generation: what the stream tells of.
            body: the request, which says what is wanted besides text.
            text_field: JSON of a choice between its index and its text.
            text_end: JSON of a choice after its text, brace included.
            plain: whether parts of the text are all that comes of the tokens.
        """
        self.generation = generation
        self._fields, self._body, self._plain = fields, body, plain
        self._head = b"data: " + json_bytes(fields)[:-1] + b',"choices":[{"index":'
        self._text_field, self._text_end = text_field.encode(), text_end.encode() + b"]"
        self._heads: dict[int, bytes] = {}  # of chunks of text, by sample
        self._unfinished = generation.num_samples
        self._pace = Pace(generation) if body.timings_per_token else None

    @abstractmethod
    def start(self) -> bytes:
        """What is sent at once, before the engine has done anything."""

    @abstractmethod
    def choice(self, sample: int, text: str = "", reason: str | None = None) -> dict[str, Any]:
        """A choice with a part of its text, which may be empty."""

    @abstractmethod
    def add_tokens(self, choice: dict[str, Any], event: TextDelta) -> None:
        """Adds what is wanted of the tokens besides their text."""

    def write(self, events: Sequence[Event]) -> bytes:
        """Chunks of a batch."""
        return b"".join(map(self.event, events))

    def event(self, event: Event) -> bytes:
        """The chunk of one event."""
        match event:
            case TextDelta():
                return self._text(event)
            case PromptProgress():
                return self._progress(event)
            case SampleFinished():
                return self._finished(event)
            case ToolCallDelta():
                raise AssertionError("there are no tools")

    def end(self, **more: Any) -> bytes:
        """The usage, if asked for, with `more` next to it, and the end of the stream."""
        if not self._body.include_usage:
            return DONE
        return self.chunk([], usage=self.generation.usage().openai(), **more) + DONE

    def fail(self, error: ApiError) -> bytes:
        """An error and the end of the stream."""
        return data_event(error.body()) + DONE

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """A chunk of any kind."""
        content = {**self._fields, "choices": choices, **more}
        if self._body.include_usage and "usage" not in content:
            content["usage"] = self._current_usage()
        return data_event(content)

    def _text(self, event: TextDelta) -> bytes:
        sample, text = event.sample, event.text
        if self._plain:
            return self._plain_text(sample, text) if text else b""
        choice = self.choice(sample, text)
        self.add_tokens(choice, event)
        more = {} if self._pace is None else {"timings": self._pace.timings(sample)}
        return self.chunk([choice], **more)

    def _plain_text(self, sample: int, text: str) -> bytes:
        head = self._heads.get(sample)
        if head is None:
            head = self._head + b"%d," % sample + self._text_field
            self._heads[sample] = head
        return head + json_bytes(text) + self._text_end + self._additions(sample) + b"}\n\n"

    def _additions(self, sample: int) -> bytes:
        """What comes after the choices of a chunk of text."""
        usage = timed = b""
        if self._body.include_usage:
            usage = b',"usage":' + json_bytes(self._current_usage())
        if self._pace is not None:
            timed = b',"timings":' + json_bytes(self._pace.timings(sample))
        return usage + timed

    def _finished(self, event: SampleFinished) -> bytes:
        """The last chunk of a choice; the very last one has the energy of all."""
        more: dict[str, Any] = {"timings": timings([event.completion])}
        self._unfinished -= 1
        if not self._unfinished:
            more["energy"] = energy_answer(self.generation)
        return self.chunk([self.choice(event.sample, reason=event.finish_reason)], **more)

    def _progress(self, progress: PromptProgress) -> bytes:
        """A chunk that tells how far the prompt is; the choice has nothing new."""
        return self.chunk(
            [self.choice(progress.sample)],
            prompt_progress={
                "total": progress.total,
                "cache": progress.cached,
                "processed": progress.processed,
                "time_ms": round(progress.seconds * 1e3, 3),
            },
        )

    def _current_usage(self) -> dict[str, object] | None:
        return self.generation.usage().openai() if self._body.continuous_usage else None
