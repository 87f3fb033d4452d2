"""One JSON line for each HTTP request, and the ids that tie it to a client's own records.

`x-request-id` and `traceparent` (W3C Trace Context) of a request are taken over, or made; both are
in the answer and in the log. Prompts and answers are in the log only if that was asked for.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemmule.infer.core.request import Completion
from gemmule.serve.energy import RequestEnergy
from gemmule.serve.events import Usage

LOGGER = logging.getLogger("gemmule.access")

_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}

_record: ContextVar["RequestRecord | None"] = ContextVar("record", default=None)


@dataclass
class RequestRecord:
    """What the log says of a request; its handler fills in what only it knows.

    Attributes:
        request_id: the client's id, or ours.
        traceparent: its place in the client's trace, or in one of its own.
        method: HTTP method.
        path: path, without the query.
        handler: the route's path, with its parameters' names; "none" if no route matches.
        status: HTTP status; 0 if there was no answer.
        seconds: time until the whole answer had been sent, or the client had left.
        client_gone: whether the client left before that.
        model: name of the model.
        stream: whether the answer is a stream.
        usage: numbers of tokens.
        completions: results of the samples that have ended.
        energy: energy of all samples together.
        error: code or type of the error, also of one in the middle of a stream.
        prompts: the prompts, if prompts are logged.
    """

    request_id: str
    traceparent: str
    method: str
    path: str
    handler: str = "none"
    status: int = 0
    seconds: float = 0.0
    client_gone: bool = False
    model: str | None = None
    stream: bool | None = None
    usage: Usage | None = None
    completions: Sequence[Completion] = ()
    energy: RequestEnergy | None = None
    error: str | None = None
    prompts: Sequence[str] = ()

    @property
    def rejected(self) -> str | None:
        """Why the request was not taken: its error's code; None if it was taken."""
        if self.status < 400 or self.usage is not None:
            return None
        return self.error or f"status_{self.status}"

    def as_dict(self, *, texts: bool) -> dict[str, Any]:
        """Fields of the log line, without those that are not known.

        Args:
            texts: whether prompt and answers are among them.
        """
        fields: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": self.request_id,
            "trace_id": self.traceparent.split("-")[1],
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "seconds": round(self.seconds, 6),
            "client_gone": self.client_gone,
            "model": self.model,
            "stream": self.stream,
            "error": self.error,
        }
        if self.usage is not None:
            fields |= {
                "prompt_tokens": self.usage.prompt,
                "cached_tokens": self.usage.cached,
                "completion_tokens": self.usage.generated,
            }
        if self.completions:
            times = self.completions[0].times
            fields |= {
                "finish_reasons": [c.finish_reason for c in self.completions],
                "queue_seconds": _between(times.queued, times.scheduled),
                "first_token_seconds": _between(times.queued, times.first_token),
            }
        if self.energy is not None:
            fields |= {"joules": self.energy.joules, "gco2e": self.energy.gco2e}
        if texts:
            answers = [c.text for c in self.completions]
            fields |= {"prompts": [*self.prompts], "answers": answers}
        return {name: value for name, value in fields.items() if value is not None}


def current_record() -> RequestRecord | None:
    """The record of the HTTP request that is being served; None where there is no log."""
    return _record.get()


def note_error(code: str) -> None:
    """Notes the code or type of the error that the current request ends with."""
    record = _record.get()
    if record is not None:
        record.error = code


class AccessLog:
    """ASGI middleware around everything else: it sees what other middleware refuses too."""

    def __init__(
        self,
        app: ASGIApp,
        observe: Callable[[RequestRecord], None],
        *,
        log_prompts: bool = False,
    ) -> None:
        """Wraps an application.

        Args:
            app: the application.
            observe: called with each record, at the end of its request.
            log_prompts: whether prompts and answers are logged.
        """
        self._app, self._observe, self._log_prompts = app, observe, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request and logs it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, finished = time.monotonic(), False
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in _METHODS else "other"
        record = RequestRecord(
            request_id(headers.get("x-request-id")),
            traceparent(headers.get("traceparent")),
            method,
            scope["path"],
        )

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not finished:
                record.client_gone = True
            return message

        async def watched_send(message: Message) -> None:
            nonlocal finished
            if message["type"] == "http.response.start":
                record.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = record.request_id
                answer["traceparent"] = record.traceparent
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                finished = True
            await send(message)

        token = _record.set(record)
        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            _record.reset(token)
            record.seconds = time.monotonic() - started
            route = scope.get("route")
            record.handler = getattr(route, "path", None) or "none"
            self._observe(record)
            if LOGGER.isEnabledFor(logging.INFO):
                LOGGER.info("%s", json.dumps(record.as_dict(texts=self._log_prompts)))


def log_to(stream: TextIO | None = None) -> None:
    """Writes the log lines, and nothing else, to a stream; None: standard error."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.handlers = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.INFO)


def request_id(given: str | None) -> str:
    """The client's id if it is one that can be written anywhere, or a new one."""
    if given is not None and _ID.fullmatch(given):
        return given
    return secrets.token_hex(16)


def traceparent(given: str | None) -> str:
    """The next span in the client's trace, or the first one of a new trace, by W3C's rules."""
    span = secrets.token_hex(8)
    match = _TRACEPARENT.fullmatch(given) if given is not None else None
    if match is not None:
        version, trace, parent, flags, rest = match.groups()
        if int(trace, 16) and int(parent, 16) and not (version == "00" and rest):
            return f"00-{trace}-{span}-{flags}"
    return f"00-{secrets.token_hex(16)}-{span}-00"


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 6)
