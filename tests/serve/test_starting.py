"""Waiting for a grammar: as long as the client does, and no longer than for the engine."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from served import PATIENCE, LiveServer, until

from gemmule.serve.grammar.spec import GrammarSpec
from gemmule.serve.grammar.trial import TrialProcess

pytest.importorskip("llguidance", reason="structured output needs the extra serve")

Start = Callable[..., LiveServer]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "structured_outputs": {"regex": "slow"}},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "a"}],
        "structured_outputs": {"regex": "slow"},
        "stream": True,
    },
}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No grammar is compiled until the test has ended; the event is set once one is tried."""
    tried, go = threading.Event(), threading.Event()
    run = TrialProcess.run

    def wait(self: TrialProcess, spec: GrammarSpec) -> str:
        tried.set()
        assert go.wait(PATIENCE)
        return run(self, spec)

    monkeypatch.setattr(TrialProcess, "run", wait)
    yield tried
    go.set()


@pytest.mark.parametrize("path", ROUTES)
def test_a_grammar_that_takes_too_long_is_503(
    start_server: Start, held: threading.Event, path: str
) -> None:
    server = start_server(queue_timeout=0.3)
    with server.client() as client:
        answer = client.post(path, json=ROUTES[path])
    assert held.is_set()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "queue_timeout"
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_does_not_wait_for_its_grammar(
    start_server: Start, held: threading.Event, path: str
) -> None:
    server = start_server()
    body = json.dumps(ROUTES[path]).encode()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as sock:
        sock.sendall(head % (path.encode(), len(body)) + body)
        assert held.wait(PATIENCE)
        assert server.server.state.running == 1
    until(lambda: server.server.state.running == 0)
    assert server.models.loaded[0].engine.num_waiting == 0
