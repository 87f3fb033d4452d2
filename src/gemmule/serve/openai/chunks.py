"""Chunks of a stream: nearly all is constant bytes around one text escaped as JSON."""

import secrets
import time
from importlib import metadata
from typing import Any

from gemmule.infer.core.request import Completion
from gemmule.serve.api_errors import ApiError
from gemmule.serve.events import PromptProgress, timings
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


class ChunkFrame:
    """Writes chunks with one id and time.

    Attributes:
        generation: what the stream tells of.
    """

    def __init__(
        self, fields: dict[str, Any], generation: Generation, body: CommonFields, text_field: str
    ) -> None:
        """Prepares the constant bytes.

        Args:
            fields: fields of every chunk.
            generation: what the stream tells of.
            body: the request, which says whether usage is wanted.
            text_field: JSON of a choice between its index and its text.
        """
        self.generation = generation
        self._fields, self._body = fields, body
        self._head = b"data: " + json_bytes(fields)[:-1] + b',"choices":[{"index":'
        self._text_field = text_field.encode()
        self._constants: dict[int, bytes] = {}
        self._unfinished = generation.num_samples
        self._pace = Pace(generation) if body.timings_per_token else None

    def text(self, sample: int, text: str, end: bytes) -> bytes:
        """A chunk that has nothing but text.

        Args:
            sample: index of the choice.
            text: its new text.
            end: JSON of the choice after its text, brace included.
        """
        head = self._constants.get(sample)
        if head is None:
            head = self._head + b"%d," % sample + self._text_field
            self._constants[sample] = head
        return head + json_bytes(text) + end + b"]" + self._additions() + b"}\n\n"

    def tokens(self, choice: dict[str, Any]) -> bytes:
        """A chunk that has text with more of its tokens."""
        return self.chunk([choice], **({"timings": self._pace.timings()} if self._pace else {}))

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """A chunk of any kind."""
        content = {**self._fields, "choices": choices, **more}
        if self._body.include_usage and "usage" not in content:
            content["usage"] = self._current_usage()
        return data_event(content)

    def finished(self, choice: dict[str, Any], completion: Completion) -> bytes:
        """The last chunk of a choice; the very last one has the energy of all."""
        more: dict[str, Any] = {"timings": timings([completion])}
        self._unfinished -= 1
        if not self._unfinished:
            more["energy"] = energy_answer(self.generation)
        return self.chunk([choice], **more)

    def progress(self, choice: dict[str, Any], progress: PromptProgress) -> bytes:
        """A chunk that tells how far the prompt is; the choice has nothing new."""
        return self.chunk(
            [choice],
            prompt_progress={
                "total": progress.total,
                "cache": progress.cached,
                "processed": progress.processed,
                "time_ms": round(progress.seconds * 1e3, 3),
            },
        )

    def end(self, **more: Any) -> bytes:
        """The usage, if asked for, with `more` next to it, and the end of the stream."""
        if not self._body.include_usage:
            return DONE
        return self.chunk([], usage=self.generation.usage().openai(), **more) + DONE

    def fail(self, error: ApiError) -> bytes:
        """An error and the end of the stream."""
        return data_event(error.body()) + DONE

    def _current_usage(self) -> dict[str, object] | None:
        return self.generation.usage().openai() if self._body.continuous_usage else None

    def _additions(self) -> bytes:
        """What comes after the choices of a chunk of text."""
        usage = timed = b""
        if self._body.include_usage:
            usage = b',"usage":' + json_bytes(self._current_usage())
        if self._pace is not None:
            timed = b',"timings":' + json_bytes(self._pace.timings())
        return usage + timed
