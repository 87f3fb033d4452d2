"""A server's long life in short: all mixed, half of the clients leave, nothing stays behind.

GEMMULE_SOAK_SECONDS sets how long; half an hour if it is not set.
"""

import json
import logging
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from engines import ModelWithEngine
from served import LiveServer
from sse_events import chunks
from test_exact_answers import SYSTEM, hash_of, joined, requests

from gemmule.infer.core.speculative import NgramDrafter
from gemmule.infer.language_model import LanguageModel

SECONDS = float(os.environ.get("GEMMULE_SOAK_SECONDS", "1800"))
CLIENTS = 16
GROWTH = 24 * 2**20  # bytes, of this process: the server and its clients
LATE = 6  # threads, and descriptors, of pools that start them when they are needed
Asked = tuple[str, dict[str, Any]]

SCHEMA = {
    "type": "object",
    "properties": {"ship": {"enum": ["red", "blue"]}, "crew": {"type": "integer", "maximum": 99}},
    "required": ["ship", "crew"],
    "additionalProperties": False,
}
MALFORMED = (
    b"GET /health HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\n{\"a\":",
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\n{",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
)  # fmt: skip
WRONG: tuple[dict[str, Any], ...] = (
    {"prompt": "a", "temperature": 999_999, "top_p": -1},
    {"prompt": "a", "n": 10_000},
    {"prompt": [10**9]},
    {"prompt": "a", "logprobs": -1},
    {"prompt": "a" * 5000},
    {"prompt": "a", "temprature": 1},
    {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
)


def different() -> list[Asked]:
    """All kinds of requests: chats, completions, scores, schemas, several samples."""
    asked = requests()
    for i in range(6):
        schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        messages = [{"role": "user", "content": f"{SYSTEM} {i}"}]
        body = {"messages": messages, "seed": i, "max_tokens": 60, "response_format": schema,
                "stream": bool(i % 2), "return_token_ids": True}  # fmt: skip
        asked.append(("/v1/chat/completions", body))
        scored = {"prompt": [3 + i, *range(10, 60 + i)], "echo": True, "logprobs": 2,
                  "max_tokens": 0, "stream": False}  # fmt: skip
        asked.append(("/v1/completions", scored))
    return asked


def read(response: httpx.Response, *, streamed: bool) -> str:
    if not streamed:
        return hash_of(response.json()["choices"])
    events = chunks(response.text)
    errors = [event["error"] for event in events if "error" in event]
    assert not errors, errors
    return hash_of(joined(events))


class Visitors:
    """Clients that come and go until the time is over.

    Attributes:
        seen: how often each thing happened.
        failures: what must not have happened.
    """

    def __init__(self, server: LiveServer, asked: list[Asked], expected: list[str]) -> None:
        self._server, self._asked, self._expected = server, asked, expected
        self.seen: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def run(self, seconds: float, seed: int) -> None:
        """Runs all clients for some time."""
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self._visit, args=(until, random.Random(seed * CLIENTS + i)))
            for i in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _visit(self, until: float, rng: random.Random) -> None:
        kinds = (self._answer, self._leave, self._leave, self._slow, self._malformed, self._wrong)
        with self._server.client() as client:
            while time.monotonic() < until and not self.failures:
                kind = rng.choice([self._answer, *kinds])
                try:
                    what = kind(client, rng)
                except Exception as e:
                    with self._lock:
                        self.failures.append(f"{kind.__name__}: {e!r}")
                    return
                with self._lock:
                    self.seen[what] += 1

    def _answer(self, client: httpx.Client, rng: random.Random) -> str:
        number = rng.randrange(len(self._asked))
        path, body = self._asked[number]
        response = client.post(path, json=body)
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1
            return "full"
        assert response.status_code == 200, response.text
        assert read(response, streamed=body["stream"]) == self._expected[number], f"no {number}"
        return "answered"

    def _leave(self, client: httpx.Client, rng: random.Random) -> str:
        path, body = rng.choice(self._asked)
        with self._send(path, {**body, "max_tokens": 100}) as sock:
            if rng.random() < 0.7:
                sock.recv(rng.randint(1, 4000))
            time.sleep(rng.random() * 0.05)
        return "left"

    def _slow(self, client: httpx.Client, rng: random.Random) -> str:
        number = rng.choice([i for i, (_, body) in enumerate(self._asked) if body["stream"]])
        with self._send(*self._asked[number]) as sock:
            data = b"".join(self._slowly(sock, rng))
        status = int(data.split(b" ", 2)[1])
        if status == 429:
            return "full"
        assert status == 200, data
        assert b"data: [DONE]" in data
        return "slow"

    def _slowly(self, sock: socket.socket, rng: random.Random) -> Iterator[bytes]:
        sock.settimeout(60)
        for _ in range(6):
            yield sock.recv(200)
            time.sleep(rng.random() * 0.1)
        while part := sock.recv(65536):
            yield part

    def _malformed(self, client: httpx.Client, rng: random.Random) -> str:
        with socket.create_connection(("127.0.0.1", self._server.port), timeout=20) as sock:
            sock.sendall(rng.choice(MALFORMED))
            sock.shutdown(socket.SHUT_WR)
            try:
                answer = sock.recv(65536)
            except ConnectionResetError:
                answer = b""
        assert not answer or b" 4" in answer[:13], answer
        return "malformed"

    def _wrong(self, client: httpx.Client, rng: random.Random) -> str:
        response = client.post("/v1/completions", json=rng.choice(WRONG))
        assert response.status_code == 400, response.text
        return "wrong"

    def _send(self, path: str, body: dict[str, Any]) -> socket.socket:
        content = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        sock = socket.create_connection(("127.0.0.1", self._server.port), timeout=60)
        sock.sendall(head.encode() + content)
        return sock


def anonymous_bytes() -> int:
    """Memory of this process that no file backs, with what is swapped: resident size hides that."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * sum(int(x.split()[1]) for x in lines if x.startswith(("RssAnon:", "VmSwap:")))


def state(server: LiveServer) -> dict[str, int]:
    """What must not grow, once nothing runs."""
    engine = server.models.loaded[0].engine
    deadline = time.monotonic() + 30
    while (stats := engine.stats()).running or stats.waiting or _connections(server):
        assert time.monotonic() < deadline, "requests run whose clients have left"
        time.sleep(0.05)
    process = psutil.Process()
    return {
        "pages": stats.pool.allocated,
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "bytes": anonymous_bytes(),
    }


def _connections(server: LiveServer) -> int:
    open_ones = psutil.Process().net_connections("tcp")
    return sum(c.laddr.port == server.port and c.status != "LISTEN" for c in open_ones)


@pytest.mark.slow
def test_nothing_stays_behind_and_every_answer_is_the_one_alone(
    lm: LanguageModel, start_server: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is measured as Linux tells it")
    pytest.importorskip("llguidance", reason="needs llguidance, for schemas")
    monkeypatch.setattr(logging.root.manager, "disable", logging.CRITICAL)  # pytest keeps lines
    model = ModelWithEngine(lm, cache_tokens=512, drafts=NgramDrafter, max_running=6)
    server = start_server({"m": model}, max_waiting=8)
    asked = different()
    with server.client() as client:
        expected = []
        for path, body in asked:
            response = client.post(path, json=body)
            assert response.status_code == 200, response.text
            expected.append(read(response, streamed=body["stream"]))
    visitors = Visitors(server, asked, expected)
    visitors.run(max(10.0, SECONDS / 10), seed=0)  # until caches and buffers have their sizes
    before = state(server)
    for part in range(1, 5):
        visitors.run(SECONDS / 4, seed=part)
        assert not visitors.failures, visitors.failures[:3]
        now = state(server)
        print(f"{dict(visitors.seen)}; {before} -> {now}")
        assert now["pages"] == 0
        assert now["threads"] <= before["threads"] + LATE
        assert now["descriptors"] <= before["descriptors"] + LATE
        assert now["bytes"] < before["bytes"] + GROWTH
    with server.client() as client:
        assert client.get("/health").status_code == 200
    assert min(visitors.seen[what] for what in ("answered", "left", "slow", "malformed")) > 20
    assert visitors.seen["full"], "the queue was never full"
    assert visitors.seen["wrong"] > 20
