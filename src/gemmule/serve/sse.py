"""Server-sent events: a stream's headers at once, then each batch of events in one write."""

import json
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gemmule.serve.access_log import note_error
from gemmule.serve.api_errors import ApiError
from gemmule.serve.events import Event
from gemmule.serve.generation import ClientGoneError, Generation

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

_log = logging.getLogger(__name__)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def json_bytes(value: Any) -> bytes:
    """JSON without white space; floats are written so that they read back equal."""
    return _encode(value).encode()


def data_event(value: Any) -> bytes:
    """One event, with the blank line that ends it."""
    return b"data: %b\n\n" % json_bytes(value)


class StreamWriter(Protocol):
    """Writes the events of one stream in a protocol's form, each with its blank line."""

    def start(self) -> bytes:
        """What is sent at once, before the engine has done anything."""

    def write(self, events: Sequence[Event]) -> bytes:
        """A batch of events; may be empty."""

    def end(self) -> bytes:
        """The end of a stream whose samples have all ended."""

    def fail(self, error: ApiError) -> bytes:
        """The end of a stream that failed."""


class EventStream(Response):
    """A response with the events of a generation."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, writer: StreamWriter) -> None:
        """Starts a response.

        Args:
            generation: has been entered already, so that what can be refused was refused.
            writer: makes the bytes.
        """
        self._generation, self._writer = generation, writer
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream; ends without a word if the client has left."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        writer = self._writer
        try:
            await send(_body(writer.start(), True))
            async for events in self._generation.batches(receive):
                data = writer.write(events) if events else KEEP_ALIVE
                if data:
                    await send(_body(data, True))
            data = writer.end()
        except ClientGoneError as e:
            note_error(e.code or e.type)
            return
        except Exception as e:  # it is too late for a status
            error = ApiError.of(e)
            note_error(error.code or error.type)
            if error.status == 500:
                _log.exception("a stream failed")
            data = writer.fail(error)
        await send(_body(data, False))


def _body(data: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}
