"""More than the server can do, and what must go on meanwhile."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
from served import NAME, LiveServer, held_up, until
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from gemmule.serve import health
from gemmule.serve.settings import ServeSettings

Start = Callable[..., LiveServer]
SHORT = {"model": NAME, "prompt": "the ship", "max_tokens": 3, "seed": 1}


def complete(server: LiveServer) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/completions", json=SHORT)


def test_a_full_queue_is_429_with_the_time_to_come_back(start_server: Start) -> None:
    server = start_server(max_waiting=2, max_running=1)
    alone = complete(server).json()["choices"]
    engine = server.models.loaded[0].engine
    with ThreadPoolExecutor(8) as pool:
        with held_up(server):
            answers = []
            for waiting in range(1, 4):
                answers.append(pool.submit(complete, server))
                until(lambda waiting=waiting: engine.num_waiting == waiting)  # type: ignore[misc]
            for _ in range(20):
                refused = complete(server)
                assert refused.status_code == 429
                assert refused.json()["error"]["code"] == "queue_full"
                assert 1 <= int(refused.headers["retry-after"]) <= 300
            assert engine.num_waiting == 3
        for answer in answers:  # those that were taken are answered, and as they would be alone
            assert answer.result().json()["choices"] == alone
    with server.client() as client:
        metrics = client.get("/metrics").text
    assert 'gemmule:requests_rejected_total{reason="queue_full"} 20.0' in metrics


def test_health_and_models_answer_while_the_engine_is_busy(start_server: Start) -> None:
    """In the middle of a step, and even if the engine's lock is held."""
    server = start_server()
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        with held_up(server):
            running = pool.submit(complete, server)
            until(lambda: server.models.loaded[0].engine.num_waiting == 1)
            with server.models.loaded[0].engine._condition:
                for path in ("/health", "/v1/models", "/openapi.json"):
                    assert client.get(path).status_code == 200
        assert running.result().status_code == 200


def test_the_queue_is_long_enough_for_a_class_of_students() -> None:
    assert ServeSettings().max_waiting >= 100


def test_a_dead_engine_shows_in_health(client: TestClient) -> None:
    served = client.app.state.serve.models.loaded[0]  # type: ignore[attr-defined]
    served.engine._loop.give_up(RuntimeError("/secret/path"))
    for method, path in (("GET", "/health"), ("POST", "/v1/completions")):
        answer = client.request(method, path, json=SHORT)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
        assert "secret" not in answer.text


# Limits of what one request may ask for.


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 999999, "top_p": -1},
        {"temperature": -1},
        {"top_k": -5},
        {"min_p": 2},
        {"prompt_logprobs": -1},
        {"prompt_logprobs": 100},
        {"logprobs": 21},
        {"n": 9},
        {"n": 0},
        {"n": 10**9},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"max_tokens": -1},
        {"max_tokens": 10**30},
        {"max_tokens": 1e30},
        {"seed": -1},
        {"seed": 2**80},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(client: TestClient, fields: dict[str, object]) -> None:
    answer = client.post("/v1/completions", json={**SHORT, **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert client.get("/health").status_code == 200


def test_an_answer_ends_with_the_context(client: TestClient) -> None:
    for fields in ({"max_tokens": 10**9}, {}):
        body = {**SHORT, "max_tokens": None, "ignore_eos": True, **fields}
        answer = client.post("/v1/completions", json=body).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] <= 257


def test_the_default_length_of_answers_can_be_set(
    make_client: Callable[..., TestClient],
) -> None:
    client = make_client(default_max_tokens=5)
    body = {"prompt": "a", "ignore_eos": True}
    assert client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == 5


# What is not told.


def test_errors_inside_say_nothing_of_the_inside(
    make_client: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(request: Request) -> Response:
        raise FileNotFoundError(2, "No such file", "/secret/path")

    monkeypatch.setattr(health, "health", fail)
    answer = make_client().get("/health")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "/secret/path" in caplog.text


def test_addresses_in_requests_are_not_fetched(client: TestClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/image.png"
        for part in (
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
            {"type": "file", "file": {"file_id": url}},
        ):
            message = {"role": "user", "content": [part]}
            answer = client.post("/v1/chat/completions", json={"messages": [message]})
            assert answer.status_code == 400
        with pytest.raises(TimeoutError):
            listening.accept()
