"""Metrics, energy and log of a server that runs: what its clients did, seen from outside."""

import io
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from prometheus_client.parser import text_string_to_metric_families
from served import NAME, LiveServer
from starlette.testclient import TestClient

from gemmule.runs.carbon import Energy
from gemmule.serve.access_log import LOGGER, log_to

CHAT = {"messages": [{"role": "user", "content": "Who is it?"}], "max_tokens": 6, "seed": 1}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream, before = io.StringIO(), (LOGGER.handlers, LOGGER.propagate, LOGGER.level)
    log_to(stream)
    yield stream
    LOGGER.handlers, LOGGER.propagate = before[0], before[1]
    LOGGER.setLevel(before[2])


class SteadyMeter:
    """Ten watts by the clock of the machine."""

    def __init__(self, country: str | None = None) -> None:
        self.started = 0.0

    def start(self) -> None:
        self.started = time.monotonic()

    def stop(self) -> Energy:
        return self.reading()

    def reading(self) -> Energy:
        return Energy(
            energy_wh=10 * (time.monotonic() - self.started) / 3600, gco2e=None, seconds=0.0,
            grid_gco2e_per_kwh=50.0, country=None, how={"cpu": "a steady ten watts"}, tool=None,
            sessions=1,
        )  # fmt: skip


@pytest.fixture
def metered(monkeypatch: pytest.MonkeyPatch, make_client: Callable[..., TestClient]) -> TestClient:
    monkeypatch.setattr("gemmule.serve.observation.EnergyMeter", SteadyMeter)
    client = make_client()
    deadline = time.monotonic() + 10
    while "energy_joules" not in client.get("/metrics").text:
        assert time.monotonic() < deadline
    return client


def scraped(text: str) -> dict[str, float]:
    """Sums over all labels."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def test_metrics_of_requests(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, "n": 2}).json()
    client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    client.post("/v1/completions", json={"prompt": "One", "no_such_field": 1})
    values = scraped(client.get("/metrics").text)
    assert values["gemmule:request_success_total"] == 3
    generated = answer["usage"]["completion_tokens"]
    assert values["gemmule:generation_tokens_total"] > generated
    assert (
        values["gemmule:request_generation_tokens_sum"] == values["gemmule:generation_tokens_total"]
    )
    assert values["gemmule:time_to_first_token_seconds_count"] == 3
    assert values["gemmule:request_params_n_count"] == 2
    assert values["gemmule:requests_rejected_total"] == 1
    assert values["http_requests_total"] == 3
    text = client.get("/metrics").text
    assert (
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 2' in text
    )
    assert f'model_name="{NAME}"' in text


def test_a_cancelled_request_is_counted(live_server: LiveServer) -> None:
    request = {**CHAT, "max_tokens": 200, "stream": True}
    with live_server.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=request) as response:
            next(response.iter_lines())
        deadline = time.monotonic() + 20
        while not (values := scraped(client.get("/metrics").text))[
            "gemmule:requests_cancelled_total"
        ]:
            assert time.monotonic() < deadline
        assert values["gemmule:num_requests_running"] == 0


def test_a_connection_that_is_refused_is_counted(live_server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", live_server.port), timeout=20) as connection:
        connection.sendall(b"this is not HTTP\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    with live_server.client() as client:
        assert 'requests_rejected_total{reason="invalid_http"} 1' in client.get("/metrics").text


def test_energy_of_answers_and_idle_add_up_to_the_meter(metered: TestClient) -> None:
    joules = 0.0
    for request in ({}, {"n": 2}, {"max_tokens": 20}):
        energy = metered.post("/v1/chat/completions", json={**CHAT, **request}).json()["energy"]
        assert energy["joules"] > 0
        assert energy["gco2e"] == pytest.approx(energy["joules"] / 3.6e6 * 50)
        assert energy["boundary"].startswith("cpu: a steady ten watts")
        joules += energy["joules"]
    with metered.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if '"choices"' in line]
    assert [c["choices"][0]["finish_reason"] is None for c in chunks] == [
        "energy" not in c for c in chunks
    ]
    joules += chunks[-1]["energy"]["joules"]
    time.sleep(0.06)
    text = metered.get("/metrics").text
    counted = {
        sample.labels["part"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "gemmule:energy_joules_total"
    }
    assert counted["requests"] == pytest.approx(joules, rel=1e-6)
    assert counted["idle"] > 0


def test_the_reason_is_said_where_energy_is_not_measured(client: TestClient) -> None:
    for _ in range(100):
        energy = client.post("/v1/chat/completions", json=CHAT).json()["energy"]
        assert energy["joules"] is None
        if "being started" not in energy["boundary"]:
            break
    assert energy["boundary"].startswith("not measured: ")


def test_a_request_has_one_log_line(client: TestClient, lines: io.StringIO) -> None:
    answer = client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    (line,) = lines.getvalue().splitlines()
    fields = json.loads(line)
    usage = answer.json()["usage"]
    assert fields["request_id"] == "mine" == answer.headers["x-request-id"]
    assert (fields["model"], fields["status"], fields["stream"]) == (NAME, 200, False)
    assert fields["prompt_tokens"] == usage["prompt_tokens"]
    assert fields["completion_tokens"] == usage["completion_tokens"]
    assert fields["finish_reasons"] == ["length"]
    assert 0 <= fields["queue_seconds"] <= fields["first_token_seconds"] <= fields["seconds"]
    assert "Who is it" not in line


def test_prompts_are_logged_if_asked_for(
    make_client: Callable[..., TestClient], lines: io.StringIO
) -> None:
    make_client(log_prompts=True).post("/v1/chat/completions", json=CHAT)
    assert "Who is it?" in json.loads(lines.getvalue())["prompts"][0]


def test_errors_are_logged_by_their_code(client: TestClient, lines: io.StringIO) -> None:
    client.post("/v1/chat/completions", json={**CHAT, "model": "nothing"})
    assert json.loads(lines.getvalue())["error"] == "model_not_found"


def test_a_client_that_leaves_is_logged(live_server: LiveServer, lines: io.StringIO) -> None:
    request = {**CHAT, "max_tokens": 200, "stream": True}
    with (
        live_server.client() as client,
        client.stream("POST", "/v1/chat/completions", json=request) as response,
    ):
        next(response.iter_lines())
    deadline = time.monotonic() + 20
    while not lines.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fields = json.loads(lines.getvalue())
    assert fields["client_gone"]
    assert fields["error"] == "client_gone"
