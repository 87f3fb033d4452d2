"""A server that has answered much goes on answering, and says so, whatever else it does."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from engines import ModelWithEngine
from served import LiveServer

from gemmule.infer.language_model import LanguageModel

CHATS = 300
TOKENS = 288  # of the cache: a little more than a context


class HealthWatch:
    """Asks /health all the time, from another thread."""

    def __init__(self, server: LiveServer) -> None:
        self.answers = 0
        self._server, self._stop = server, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "HealthWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._server.client() as client:
            while not self._stop.wait(0.01):
                assert client.get("/health").status_code == 200
                self.answers += 1


def test_hundreds_of_chats_with_a_full_prefix_cache(
    lm: LanguageModel, start_server: Callable[..., LiveServer]
) -> None:
    server = start_server({"m": ModelWithEngine(lm, cache_tokens=TOKENS)})

    def chat(i: int) -> int:
        messages = [{"role": "user", "content": f"What is {i}? " + "Tell. " * (i % 9)}]
        body = {"messages": messages, "max_tokens": 3 + i % 5, "ignore_eos": True, "seed": i}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["completion_tokens"])

    limits = httpx.Limits(max_connections=8)
    with (
        HealthWatch(server) as watch,
        server.client(limits=limits) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        assert [*pool.map(chat, range(CHATS))] == [3 + i % 5 for i in range(CHATS)]
    stats = server.models.loaded[0].engine.stats()
    assert (stats.pool.allocated, stats.waiting, stats.running) == (0, 0, 0)
    assert stats.pool.cached
    assert stats.prompt_tokens - stats.cached_tokens > 10 * TOKENS  # pages were taken from old ones
    assert watch.answers > 3


def test_health_is_answered_while_many_streams_run(live_server: LiveServer) -> None:
    body = {"prompt": "a", "max_tokens": 120, "ignore_eos": True, "stream": True}

    def stream(seed: int) -> int:
        asked: Any = {**body, "seed": seed}
        with client.stream("POST", "/v1/completions", json=asked) as response:
            return sum(line.startswith("data: ") for line in response.iter_lines())

    limits = httpx.Limits(max_connections=32)
    with (
        HealthWatch(live_server) as watch,
        live_server.client(limits=limits) as client,
        ThreadPoolExecutor(32) as pool,
    ):
        assert min(pool.map(stream, range(64))) > 10
    assert watch.answers > 3


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_without_a_limit_an_answer_ends_with_the_context(
    live_server: LiveServer, path: str
) -> None:
    asked: dict[str, Any] = {"ignore_eos": True, "seed": 1}
    if path.endswith("chat/completions"):
        asked["messages"] = [{"role": "user", "content": "Go on for ever."}]
    else:
        asked["prompt"] = "Go on for ever."
    with live_server.client() as client:
        answer = client.post(path, json=asked).json()
    usage = answer["usage"]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert usage["total_tokens"] == 256
    assert live_server.models.loaded[0].engine.stats().pool.allocated == 0
