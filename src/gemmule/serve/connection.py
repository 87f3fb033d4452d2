"""One client's connection: uvicorn's, with limits of its own before the application sees anything.

uvicorn keeps a request's head in memory whatever its length (CVE-2025-48956 was this in vLLM), and
the trailers after a chunked body. It waits for ever for a client that sends half a request, or does
not read its answer.
"""

import asyncio
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gemmule.serve.api_errors import ApiError
from gemmule.serve.observation import Observation
from gemmule.serve.settings import ServeSettings


class Connection(HttpToolsProtocol):
    """A connection that ends when its client is idle in the middle of something."""

    settings: ServeSettings
    observation: Observation

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a client, unless there are too many."""
        self._timer: asyncio.TimerHandle | None = None
        self._blocked: asyncio.TimerHandle | None = None  # set while the client does not read
        self._head_bytes = 0  # since the last complete head, or the last part of a body
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            message = "there are too many connections: try again later"
            self._end(ApiError(503, message, code="overloaded", retry_after=1))
            return
        self._started = self.loop.time()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the timers."""
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes a part of a request."""
        if self.transport.is_closing():
            return
        if self._timer is None:  # the next request of a connection
            self._started = self.loop.time()
        self._wait()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > self.settings.max_header_bytes:
            limit = self.settings.max_header_bytes
            message = f"address and headers have more than {limit} bytes"
            self._refuse(ApiError(431, message, code="headers_too_large"))

    def on_message_begin(self) -> None:
        """A head begins."""
        self._head_bytes = max(1, self._head_bytes)  # 0: after another request
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A head is complete: from here on the application counts."""
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body, which the application counts; trailers may follow the last one."""
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete: the client may wait now."""
        self._head_bytes = 0
        self._stop_waiting()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is not HTTP, in the form of all other errors."""
        self._end(ApiError(400, "this is not a valid HTTP request", code="invalid_http"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        if cycle.scope["http_version"] == "1.0":
            app = _until_closed(cycle, app)
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def pause_writing(self) -> None:
        """The client does not read: it has a while until the connection is closed."""
        super().pause_writing()
        self._blocked = self.loop.call_later(self.settings.idle_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._blocked is not None:
            self._blocked.cancel()
            self._blocked = None
        super().resume_writing()

    def _wait(self) -> None:
        """Expects more of a request: soon, and all of it within the time of a request."""
        self._stop_waiting()
        left = self._started + self.settings.request_timeout - self.loop.time()
        seconds = max(0.0, min(self.settings.idle_timeout, left))
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # it is us who do not read: a request before it still runs
            self._wait()
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self._head_bytes == 0 and not answering:  # nothing has come, or nothing that matters
            self.transport.close()
        else:
            error = ApiError(408, "the request did not arrive in time", code="idle_client")
            self._refuse(error)

    def _refuse(self, error: ApiError) -> None:
        """Ends the connection because of what the client sent, or did not send."""
        cycle = self.cycle
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.abort()  # the error would be read as a part of the answer
        else:
            self._end(error)

    def _end(self, error: ApiError) -> None:
        """Answers without the application, and closes."""
        self.observation.metrics.observe_rejection(error.code or error.type)
        body = json.dumps(error.body()).encode()
        lines = [
            b"HTTP/1.1 %d Error" % error.status,
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        if error.retry_after is not None:
            lines.append(b"retry-after: %d" % error.retry_after)
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()


def _until_closed(cycle: RequestResponseCycle, app: ASGIApp) -> ASGIApp:
    """Ends an answer of unknown length with the connection: HTTP/1.0 knows no chunks.

    uvicorn sends them all the same, and the client would take their lengths for a part of the
    answer (RFC 9112, section 6.1).
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        length_known = False

        async def send_plain(message: Message) -> None:
            nonlocal length_known
            if message["type"] == "http.response.start":
                length_known = any(name == b"content-length" for name, _ in message["headers"])
                cycle.chunked_encoding = None if length_known else False
            elif not length_known:
                cycle.expected_content_length = len(message["body"])
            await send(message)

        await app(scope, receive, send_plain)

    return answer


def connection_class(settings: ServeSettings, observation: Observation) -> type[Connection]:
    """The class of connections of one server, as uvicorn takes it."""
    fields = {"settings": settings, "observation": observation}
    return type("Connection", (Connection,), fields)
