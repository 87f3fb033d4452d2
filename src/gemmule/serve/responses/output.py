"""The items of an answer as they grow, and the events of a stream that tell of them."""

import secrets
from collections.abc import Iterator
from typing import Any

from gemmule.model.tokenizer import Tokenizer
from gemmule.serve.events import Event, SampleFinished, TextDelta, ToolCallDelta
from gemmule.serve.openai.logprobs import chat_logprobs

Fields = dict[str, Any]


class OutputItems:
    """Makes the items of one answer from its events: a message, and calls of functions.

    Attributes:
        items: those that are complete, in order.
        finished: the answer's last event; None: there is more to come.
    """

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        """Starts without items.

        Args:
            tokenizer: gives the texts of tokens.
            logprobs: whether log-probabilities are wanted.
        """
        self._tokenizer, self._with_logprobs = tokenizer, logprobs
        self.items: list[Fields] = []
        self.finished: SampleFinished | None = None
        self._message = ""  # id of the message that is open; empty: none is
        self._text: list[str] = []
        self._logprobs: list[Fields] = []
        self._call: Fields | None = None  # the call that is open
        self._call_index = -1

    def feed(self, event: Event) -> Iterator[Fields]:
        """Takes an event; yields events of the protocol, without their sequence numbers."""
        match event:
            case TextDelta():
                if event.text or (self._message and event.logprobs):
                    yield from self._grow_text(event)
                elif self._with_logprobs:  # of tokens that complete no text yet
                    self._logprobs += chat_logprobs(self._tokenizer, event.logprobs)
            case ToolCallDelta():
                yield from self._grow_call(event)
            case SampleFinished():
                self.finished = event
                status = "incomplete" if event.finish_reason == "length" else "completed"
                if not (self._message or self._call or self.items):
                    yield from self._open_message()  # an answer has an item, if an empty one
                yield from self._close(status)

    def _grow_text(self, event: TextDelta) -> Iterator[Fields]:
        if not self._message:
            yield from self._close("completed")
            yield from self._open_message()
        entries = chat_logprobs(self._tokenizer, event.logprobs) if self._with_logprobs else []
        self._text.append(event.text)
        self._logprobs += entries
        yield {
            "type": "response.output_text.delta",
            **self._place_of_text(),
            "delta": event.text,
            "logprobs": entries,
        }

    def _grow_call(self, event: ToolCallDelta) -> Iterator[Fields]:
        if self._call is None or event.index != self._call_index:
            yield from self._close("completed")
            self._call_index = event.index
            self._call = {
                "id": new_id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": event.id,
                "name": event.name,
                "arguments": "",
            }
            yield self._added(self._call)
        self._call["arguments"] += event.arguments
        if event.arguments:
            yield {
                "type": "response.function_call_arguments.delta",
                **self._place(self._call["id"]),
                "delta": event.arguments,
            }

    def _open_message(self) -> Iterator[Fields]:
        self._message = new_id("msg")
        yield self._added(
            {
                "id": self._message,
                "type": "message",
                "status": "in_progress",
                "role": "assistant",
                "content": [],
            }
        )
        part = _text_part("", [])
        yield {"type": "response.content_part.added", **self._place_of_text(), "part": part}

    def _close(self, status: str) -> Iterator[Fields]:
        """Ends the open item, if there is one."""
        if self._message:
            text, where = "".join(self._text), self._place_of_text()
            part = _text_part(text, self._logprobs)
            yield {
                "type": "response.output_text.done",
                **where,
                "text": text,
                "logprobs": self._logprobs,
            }
            yield {"type": "response.content_part.done", **where, "part": part}
            yield self._done(
                {
                    "id": self._message,
                    "type": "message",
                    "status": status,
                    "role": "assistant",
                    "content": [part],
                }
            )
            self._message, self._text, self._logprobs = "", [], []
        elif self._call is not None:
            call, self._call = self._call, None
            yield {
                "type": "response.function_call_arguments.done",
                **self._place(call["id"]),
                "name": call["name"],
                "arguments": call["arguments"],
            }
            yield self._done({**call, "status": status})

    def _added(self, item: Fields) -> Fields:
        return {
            "type": "response.output_item.added",
            "output_index": len(self.items),
            "item": {**item},
        }

    def _done(self, item: Fields) -> Fields:
        self.items.append(item)
        return {
            "type": "response.output_item.done",
            "output_index": len(self.items) - 1,
            "item": item,
        }

    def _place(self, item_id: str) -> Fields:
        return {"item_id": item_id, "output_index": len(self.items)}

    def _place_of_text(self) -> Fields:
        return {**self._place(self._message), "content_index": 0}


def new_id(prefix: str) -> str:
    """A new id, such as msg_0123…."""
    return f"{prefix}_{secrets.token_hex(16)}"


def _text_part(text: str, logprobs: list[Fields]) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
