"""The message that answers, whole or as a stream of its blocks."""

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gemmule.infer.core.request import Completion
from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.api_errors import ApiError
from gemmule.serve.chat_job import ChatJob
from gemmule.serve.events import Event, SampleFinished, TextDelta, ToolCallDelta, Usage
from gemmule.serve.generation import Generation
from gemmule.serve.sse import json_bytes

Fields = dict[str, Any]


class MessageUsage(BaseModel):
    """Numbers of tokens; those of the prompt are in two parts."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageAnswer(BaseModel):
    """Answer of /v1/messages."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(BaseModel):
    """Event of a message's stream; its further fields follow from its type."""

    model_config = ConfigDict(extra="allow")
    type: str


class CountTokensAnswer(BaseModel):
    """Answer of /v1/messages/count_tokens."""

    input_tokens: int


class MessageBuilder:
    """Makes the message of one request from its events.

    Attributes:
        blocks: those that are complete, in order.
    """

    def __init__(self, job: ChatJob, tokenizer: Tokenizer, model: str) -> None:
        """Starts without blocks."""
        self._tokenizer, self._model = tokenizer, model
        self._parser = job.format.parser() if job.format else None
        self._stops, self._prompt = job.request.params.stop, len(job.request.prompt)
        self._id = f"msg_{secrets.token_hex(12)}"
        self.blocks: list[Fields] = []
        self._open: Fields | None = None  # the block that grows
        self._grown: list[str] = []  # its text, or the JSON of its input
        self._call_index = -1
        self._finished: SampleFinished | None = None

    def feed(self, events: Sequence[Event]) -> Iterator[Fields]:
        """Takes events; yields the protocol's."""
        for event in events:
            for parsed in self._parser.feed(event) if self._parser else (event,):
                match parsed:
                    case TextDelta():
                        yield from self._grow_text(parsed.text) if parsed.text else ()
                    case ToolCallDelta():
                        yield from self._grow_call(parsed)
                    case SampleFinished():
                        self._finished = parsed
                        if self._open is None and not self.blocks:
                            yield from self._grow_text("")  # an answer has a block, if an empty one
                        yield from self._close()

    def message(self, usage: Usage | None = None) -> Fields:
        """The message as it is now.

        Args:
            usage: numbers of tokens, once the answer is complete.
        """
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": self.blocks,
            **self.ending(),
            "usage": _usage(usage or Usage(self._prompt, 0, 0)),
        }

    def ending(self) -> Fields:
        """Why the answer ended; null while it has not."""
        if self._finished is None:
            return {"stop_reason": None, "stop_sequence": None}
        completion = self._finished.completion
        if self._finished.finish_reason == "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        if completion.finish_reason == "stop":
            sequence = _stop_sequence(completion, self._tokenizer, self._stops)
            reason = "end_turn" if sequence is None else "stop_sequence"
            return {"stop_reason": reason, "stop_sequence": sequence}
        full = completion.finish_reason == "context"
        reason = "model_context_window_exceeded" if full else "max_tokens"
        return {"stop_reason": reason, "stop_sequence": None}

    def _grow_text(self, text: str) -> Iterator[Fields]:
        if self._open is None or self._open["type"] != "text":
            yield from self._start({"type": "text", "text": ""})
        if text:
            self._grown.append(text)
            yield self._delta({"type": "text_delta", "text": text})

    def _grow_call(self, event: ToolCallDelta) -> Iterator[Fields]:
        new = self._open is None or self._open["type"] != "tool_use"
        if new or event.index != self._call_index:
            self._call_index = event.index
            call: Fields = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            yield from self._start(call)
        if event.arguments:
            self._grown.append(event.arguments)
            yield self._delta({"type": "input_json_delta", "partial_json": event.arguments})

    def _start(self, block: Fields) -> Iterator[Fields]:
        yield from self._close()
        self._open, self._grown = block, []
        index = len(self.blocks)
        yield {"type": "content_block_start", "index": index, "content_block": {**block}}

    def _delta(self, delta: Fields) -> Fields:
        return {"type": "content_block_delta", "index": len(self.blocks), "delta": delta}

    def _close(self) -> Iterator[Fields]:
        if self._open is None:
            return
        block, self._open = self._open, None
        grown = "".join(self._grown)
        if block["type"] == "text":
            block["text"] = grown
        else:
            block["input"] = _input(grown)
        yield {"type": "content_block_stop", "index": len(self.blocks)}
        self.blocks.append(block)


class MessageStream:
    """Writes a message's stream."""

    def __init__(self, builder: MessageBuilder, generation: Generation) -> None:
        """Prepares one stream."""
        self._builder, self._generation = builder, generation

    def start(self) -> bytes:
        """The message without content; how much of the prompt is cached is told at the end."""
        return _event({"type": "message_start", "message": self._builder.message()})

    def write(self, events: Sequence[Event]) -> bytes:
        """The events of a batch."""
        return b"".join(map(_event, self._builder.feed(events)))

    def end(self) -> bytes:
        """Why the answer ended, and the numbers of tokens."""
        usage = _usage(self._generation.usage())
        ending = self._builder.ending()
        return _event({"type": "message_delta", "delta": ending, "usage": usage}) + _event(
            {"type": "message_stop"}
        )

    def fail(self, error: ApiError) -> bytes:
        """An error, which ends the stream."""
        return _event(error.body("anthropic"))


def _event(fields: Fields) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (fields["type"].encode(), json_bytes(fields))


def _usage(usage: Usage) -> Fields:
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.generated,
    }


def _stop_sequence(
    completion: Completion, tokenizer: Tokenizer, stops: Sequence[str]
) -> str | None:
    """The stop sequence that ended a text; None: a stop token did."""
    rest = tokenizer.decode(completion.ids)[len(completion.text) :]
    return next((stop for stop in stops if rest.startswith(stop)), None)


def _input(text: str) -> Fields:
    """The input of a call; a call that was cut short has none that can be read."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
