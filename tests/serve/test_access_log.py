"""One log line for each request, with ids that are taken over or made."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Scope

from gemmule.infer.core.request import Completion, RequestTimes, TokenCounts
from gemmule.serve.access_log import (
    LOGGER,
    AccessLog,
    RequestRecord,
    current_record,
    log_to,
    note_error,
    request_id,
    traceparent,
)
from gemmule.serve.energy import RequestEnergy
from gemmule.serve.events import Usage

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
COMPLETION = Completion(
    "an answer", (5, 6), "stop",
    counts=TokenCounts(prompt=9, cached=4, generated=3),
    times=RequestTimes(queued=10.0, scheduled=10.5, first_token=11.0, finished=12.0),
)  # fmt: skip


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream, before = io.StringIO(), (LOGGER.handlers, LOGGER.propagate, LOGGER.level)
    log_to(stream)
    yield stream
    LOGGER.handlers, LOGGER.propagate = before[0], before[1]
    LOGGER.setLevel(before[2])


async def answer(request: Request) -> Response:
    record = current_record()
    assert record is not None
    record.model, record.stream = "student", False
    record.completions, record.usage = [COMPLETION], Usage(9, 4, 3)
    record.energy = RequestEnergy(1.5, None, "a fake meter")
    record.prompts = ["a secret"]
    return PlainTextResponse("an answer")


async def refuse(request: Request) -> Response:
    note_error("queue_full")
    return PlainTextResponse("later", 429)


async def fail(request: Request) -> Response:
    raise RuntimeError("a bug")


def client(records: list[RequestRecord], *, log_prompts: bool = False) -> TestClient:
    middleware = Middleware(AccessLog, observe=records.append, log_prompts=log_prompts)
    routes = [Route("/v1/things/{name}", answer), Route("/fail", fail), Route("/full", refuse)]
    return TestClient(Starlette(routes=routes, middleware=[middleware]))


def test_a_request_has_one_line_with_all_that_is_known(lines: io.StringIO) -> None:
    client([]).get(
        "/v1/things/x?key=secret", headers={"x-request-id": "mine", "traceparent": PARENT}
    )
    (line,) = lines.getvalue().splitlines()
    fields = json.loads(line)
    assert fields.pop("seconds") >= 0
    assert fields.pop("time").endswith("+00:00")
    assert fields == {
        "request_id": "mine",
        "trace_id": TRACE,
        "method": "GET",
        "path": "/v1/things/x",
        "status": 200,
        "client_gone": False,
        "model": "student",
        "stream": False,
        "prompt_tokens": 9,
        "cached_tokens": 4,
        "completion_tokens": 3,
        "finish_reasons": ["stop"],
        "queue_seconds": 0.5,
        "first_token_seconds": 1.0,
        "joules": 1.5,
    }


def test_texts_are_logged_only_if_asked_for(lines: io.StringIO) -> None:
    client([]).get("/v1/things/x")
    assert "secret" not in lines.getvalue()
    assert "an answer" not in lines.getvalue()
    client([], log_prompts=True).get("/v1/things/x")
    fields = json.loads(lines.getvalue().splitlines()[1])
    assert (fields["prompts"], fields["answers"]) == (["a secret"], ["an answer"])


def test_ids_are_in_the_answer() -> None:
    records: list[RequestRecord] = []
    headers = {"x-request-id": "mine", "traceparent": PARENT}
    response = client(records).get("/v1/things/x", headers=headers)
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["traceparent"] == records[0].traceparent
    assert records[0].traceparent.startswith(f"00-{TRACE}-")
    assert records[0].traceparent != PARENT


def test_routes_are_named_by_their_pattern() -> None:
    records: list[RequestRecord] = []
    client(records).get("/v1/things/x")
    client(records).get("/nothing/of/that/name")
    client(records).request("BREW", "/v1/things/x")
    assert [r.handler for r in records] == ["/v1/things/{name}", "none", "/v1/things/{name}"]
    assert [r.status for r in records] == [200, 404, 405]
    assert [r.rejected for r in records] == [None, "status_404", "status_405"]
    assert records[2].method == "other"


def test_a_refusal_is_named_by_the_code_of_its_error(lines: io.StringIO) -> None:
    records: list[RequestRecord] = []
    client(records).get("/full")
    assert records[0].rejected == "queue_full"
    assert json.loads(lines.getvalue())["error"] == "queue_full"


def test_a_failure_is_logged_as_well(lines: io.StringIO) -> None:
    with pytest.raises(RuntimeError):
        client([]).get("/fail")
    assert json.loads(lines.getvalue())["status"] == 0


@pytest.mark.parametrize("given", [None, "", "a b", "a\nb", "x" * 129, "ü", '"quoted"'])
def test_an_id_that_cannot_be_written_anywhere_is_replaced(given: str | None) -> None:
    made = request_id(given)
    assert made != given
    assert len(made) == 32
    assert made != request_id(given)


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "junk",
        PARENT.upper(),
        f"ff{PARENT[2:]}",
        PARENT.replace(TRACE, "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
        f"{PARENT}-more",
    ],
)
def test_a_traceparent_that_is_not_valid_begins_a_new_trace(given: str | None) -> None:
    version, trace, span, flags = traceparent(given).split("-")
    assert (version, flags) == ("00", "00")
    assert trace != TRACE
    assert len(trace) == 32
    assert len(span) == 16


def test_a_later_version_of_traceparent_is_understood() -> None:
    assert traceparent(f"01{PARENT[2:]}-more").startswith(f"00-{TRACE}-")


async def call(app: Any, events: list[Message]) -> None:
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}

    async def receive() -> Message:
        return events.pop(0)

    async def send(message: Message) -> None:
        """Needs nothing."""

    await app(scope, receive, send)


@pytest.mark.parametrize("finishes", [True, False])
def test_a_client_that_left_before_the_end_is_noticed(finishes: bool) -> None:
    records: list[RequestRecord] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if finishes:
            await send({"type": "http.response.body", "body": b""})
        await receive()

    asyncio.run(call(AccessLog(app, records.append), [{"type": "http.disconnect"}]))
    assert records[0].client_gone is not finishes


def test_without_a_log_nothing_is_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    client([]).get("/v1/things/x")
    assert not caplog.records
