"""Streams over a socket: what comes at once, what comes while nothing happens, and who leaves."""

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from engines import ScriptedModel, byte_tokens
from served import LiveServer

from gemmule.infer.language_model import LanguageModel

MODEL = "slow"
ASK = {"prompt": [5] * 200, "temperature": 0, "max_tokens": 50, "ignore_eos": True}
WAIT = 20  # seconds


def send(server: LiveServer, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """Sends a request and leaves the connection open."""
    content = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)
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


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stats(server: LiveServer) -> Any:
    return server.models.loaded[0].engine.stats()


def slow(lm: LanguageModel, seconds: float, **settings: Any) -> dict[str, LanguageModel]:
    """A model that needs `seconds` for a step, of which a prompt of 200 tokens has four."""
    return {MODEL: ScriptedModel(lm, byte_tokens("abcdefgh"), seconds, **settings)}


def test_headers_and_role_come_before_the_prompt_has_run_then_comments(
    lm: LanguageModel, start_server: Callable[..., LiveServer]
) -> None:
    server = start_server(slow(lm, 0.15), keepalive_seconds=0.05)
    begin = time.monotonic()
    chat = {"messages": [{"role": "user", "content": "a" * 150}], "max_tokens": 3, "stream": True}
    with send(server, chat, "/v1/chat/completions") as sock:
        data = read_until(sock, b'"role":"assistant"')
        assert time.monotonic() - begin < 0.4
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
    assert stats(server).generated_tokens < 20


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
    lm: LanguageModel, start_server: Callable[..., LiveServer]
) -> None:
    server = start_server()
    content = json.dumps({"content": "the old sea " * 100_000}).encode()
    with server.client() as client, socket.create_connection(("127.0.0.1", server.port)) as sock:
        client.get("/health")
        head = (
            f"POST /tokenize HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        begin = time.monotonic()
        sock.sendall(head.encode() + content)
        sock.setblocking(False)
        delays = []
        while True:
            sent = time.monotonic()
            assert client.get("/health").status_code == 200
            delays.append(time.monotonic() - sent)
            try:
                if sock.recv(100):
                    break
            except BlockingIOError:
                continue
        whole = time.monotonic() - begin
    assert whole > 0.1, "the text is too short for this test"
    assert max(delays) < max(0.1, whole / 3), (max(delays), whole)
