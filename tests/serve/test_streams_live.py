"""Streams over a socket: what comes at once, what comes while nothing happens, and who leaves."""

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from engines import ScriptedModel, byte_tokens
from served import PATIENCE, LiveServer, until

from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer

MODEL = "slow"
ASK: dict[str, Any] = {"prompt": [5] * 200, "temperature": 0, "max_tokens": 50, "ignore_eos": True}


def send(server: LiveServer, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """Sends a request and leaves the connection open."""
    content = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    sock.sendall(post(path, content))
    return sock


def post(path: str, content: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    data = b""
    while wanted not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    return data


def stats(server: LiveServer) -> Any:
    return server.models.loaded[0].engine.stats()


def slow(lm: LanguageModel, seconds: float, **settings: Any) -> dict[str, LanguageModel]:
    """A model that needs `seconds` for a step, of which a prompt of 200 tokens has four."""
    return {MODEL: ScriptedModel(lm, byte_tokens("abcdefgh"), seconds, **settings)}


def test_headers_and_role_come_before_the_prompt_has_run_then_comments(
    lm: LanguageModel, start_server: Callable[..., LiveServer]
) -> None:
    server = start_server(slow(lm, 0.15), keepalive_seconds=0.05)
    chat = {"messages": [{"role": "user", "content": "a" * 150}], "max_tokens": 3, "stream": True}
    with send(server, chat, "/v1/chat/completions") as sock:
        data = read_until(sock, b'"role":"assistant"')
        assert stats(server).generated_tokens == 0
        assert b"text/event-stream" in data
        assert b"content-length" not in data.lower()
        data += read_until(sock, b"[DONE]\n\n")
        prompt, _, _ = data.partition(b'"content":"a')
        assert prompt.count(b": keep-alive\n\n") >= 2


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("state", ["prompt", "decoding"])
def test_a_client_that_leaves_stops_its_request(
    lm: LanguageModel, start_server: Callable[..., LiveServer], stream: bool, state: str
) -> None:
    server = start_server(slow(lm, 0.05))
    with send(server, {**ASK, "stream": stream}):
        until(lambda: stats(server).running == 1)
        if state == "decoding":
            until(lambda: stats(server).generated_tokens > 2)
    until(lambda: stats(server).running == 0)
    assert stats(server).pool.allocated == 0
    assert stats(server).generated_tokens < ASK["max_tokens"]


def test_a_queued_client_that_leaves_stops_no_other(
    lm: LanguageModel, start_server: Callable[..., LiveServer]
) -> None:
    server = start_server(slow(lm, 0.02, cache_tokens=256))
    with send(server, ASK) as first:
        until(lambda: stats(server).running == 1)
        for stream in (True, False):
            with send(server, {**ASK, "stream": stream}):
                until(lambda: stats(server).waiting == 1)
            until(lambda: stats(server).waiting == 0)
        data = read_until(first, b"}}")
        answer = json.loads(data[data.index(b"\r\n\r\n") + 4 :].partition(b"\n")[0])
        assert answer["usage"]["completion_tokens"] == 50
    until(lambda: stats(server).running == 0)


def test_an_engine_that_fails_is_an_event_and_the_end_of_the_stream(
    lm: LanguageModel, start_server: Callable[..., LiveServer]
) -> None:
    server = start_server(slow(lm, 0.02))
    with send(server, {**ASK, "stream": True}) as sock:
        read_until(sock, b'"text":"a"')
        server.models.loaded[0].engine.shutdown(drain=False)
        data = read_until(sock, b"[DONE]\n\n")
    event = next(part for part in data.split(b"\n\n") if b'"error"' in part)
    error = json.loads(event[event.index(b"data: ") + 6 :])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "shutting_down"


def test_long_texts_do_not_hold_up_others(
    start_server: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are answered while a long text is being encoded, which goes on until then."""
    began, go = threading.Event(), threading.Event()
    encode = Tokenizer.encode

    def encode_slowly(self: Tokenizer, text: str, **how: bool) -> list[int]:
        if len(text) > 100_000:
            began.set()
            assert go.wait(2 * PATIENCE)
        return encode(self, text, **how)

    monkeypatch.setattr(Tokenizer, "encode", encode_slowly)
    server = start_server()
    with (
        send(server, {"content": "the old sea " * 10_000}, "/tokenize") as sock,
        server.client() as client,
    ):
        try:
            assert began.wait(PATIENCE)
            for _ in range(20):
                assert client.get("/health").status_code == 200
            answer = client.post("/v1/completions", json={"prompt": "the sea", "max_tokens": 1})
            assert answer.status_code == 200
        finally:
            go.set()
        assert read_until(sock, b"}").startswith(b"HTTP/1.1 200")
