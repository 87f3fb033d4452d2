"""A server of the page whose answers a test writes, byte by byte if it likes."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gemmule.serve import page

HOLD = object()  # in an answer: wait for release()
MODELS = ("teacher", "student")


@dataclass
class ScriptedServer:
    """What it is asked, and what it answers.

    Attributes:
        url: address of the page.
        answer: pieces of the next answers: text is a chunk, bytes are sent as they are, HOLD waits.
        failure: status and message of the next answers instead, or None.
        key: API key that requests need; empty: none.
        energy: value of `energy` in the last chunk.
        finish: finish reason of the next answers.
        requests: bodies of all chat requests.
    """

    url: str = ""
    answer: list[Any] = field(default_factory=lambda: ["Hello", " there."])
    failure: tuple[int, str] | None = None
    key: str = ""
    energy: dict[str, Any] | None = None
    finish: str = "stop"
    requests: list[dict[str, Any]] = field(default_factory=list)
    _closing: bool = False
    _gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def release(self) -> None:
        """Lets an answer go on from its HOLD."""
        self._gate.release()

    def app(self) -> Starlette:
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/models/{name}/card", self._card),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
        ]
        return Starlette(routes=[*routes, *page.routes()])

    def _denied(self, request: Request) -> Response | None:
        if not self.key or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return _error(401, "this server needs an API key")

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        return self._denied(request) or PlainTextResponse(
            'gemmule:num_requests_running{model_name="teacher"} 1\n'
            'gemmule:kv_cache_usage_perc{model_name="teacher"} 0.25\n'
        )

    async def _models(self, request: Request) -> Response:
        details = {
            "context_length": 512, "parameters": 1_000_000, "quantization": "int8", "card": True,
            "loaded": True, "defaults": {"temperature": 1.0, "top_p": 1.0},
        }  # fmt: skip
        data = [
            {"id": name, "object": "model", "created": 1, "owned_by": "gemmule", "gemmule": details}
            for name in MODELS
        ]
        return self._denied(request) or JSONResponse({"object": "list", "data": data})

    async def _card(self, request: Request) -> Response:
        title = f"---\nlicense: other\n---\n# {request.path_params['name']}"
        text = f"{title}\n\nA card with **bold** and <b>HTML</b>.\n\nSee [Sources](#sources).\n"
        return self._denied(request) or PlainTextResponse(text, media_type="text/markdown")

    async def _chat(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        body = await request.json()
        self.requests.append(body)
        if self.failure:
            return _error(*self.failure)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        yield _chunk({"role": "assistant", "content": None})
        count = 0
        for piece in list(self.answer):
            if piece is HOLD:
                while not (self._closing or self._gate.acquire(blocking=False)):
                    await asyncio.sleep(0.01)
            elif isinstance(piece, bytes):
                yield piece
                await asyncio.sleep(0.02)  # so that it is a packet of its own
            else:
                count += 1
                yield _chunk({"content": piece}, logprobs=_logprobs(piece, body))
        more = {"timings": {"predicted_per_second": 12.5, "predicted_n": count}}
        yield _chunk({}, finish=self.finish, energy=self.energy, **more)
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"


def chunk(text: str) -> bytes:
    """The event that carries a piece of text, to be cut by a test; no character is escaped."""
    return _chunk({"content": text})


def _chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    logprobs = more.pop("logprobs", None)
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return _event({"object": "chat.completion.chunk", "choices": [choice], **more})


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def _logprobs(text: str, body: dict[str, Any]) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None
    choices = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode())}
        for token, logprob in ((text, -0.1), (" other", -2.5), (" third", -4.0))
    ]
    return {"content": [{**choices[0], "top_logprobs": choices}]}


def _error(status: int, message: str) -> Response:
    error = {"message": message, "type": "error", "code": str(status), "param": None}
    return JSONResponse({"error": error}, status_code=status)


@contextmanager
def running(server: ScriptedServer, port: int = 0) -> Iterator[ScriptedServer]:
    """Serves on loopback in a thread until the block ends."""
    config = uvicorn.Config(
        server.app(), host="127.0.0.1", port=port, log_level="error", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, name="scripted-server")
    thread.start()
    try:
        while not runner.started:
            assert thread.is_alive(), "the scripted server did not start"
            thread.join(0.01)
        address = runner.servers[0].sockets[0].getsockname()
        server.url = f"http://127.0.0.1:{address[1]}/"
        yield server
    finally:
        server._closing = True
        runner.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the scripted server did not stop"
