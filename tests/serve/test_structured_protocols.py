"""Structured output and tools in the Responses and Messages APIs."""

import json
from typing import Any

import pytest
from served import NAME
from starlette.testclient import TestClient

from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer
from models import TINY, random_model, tiny_config

pytest.importorskip("llguidance", reason="structured output needs the extra serve")

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome 🏛"]}},
    "required": ["city"],
}
CITIES = ("Paris", "Rome 🏛")
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
          "additionalProperties": False}  # fmt: skip
FUNCTION = {"type": "function", "name": "weather", "parameters": PARAMETERS}
TOOL = {"name": "weather", "input_schema": PARAMETERS}
RESPONSE: dict[str, Any] = {"model": NAME, "input": "Hello", "seed": 1, "max_output_tokens": 150}
MESSAGE: dict[str, Any] = {
    "model": NAME, "messages": [{"role": "user", "content": "Hello"}], "seed": 1, "max_tokens": 150,
}  # fmt: skip
ONE = {"type": "any", "disable_parallel_tool_use": True}


@pytest.fixture(scope="module")
def lm(pieces: Tokenizer) -> LanguageModel:
    """As everywhere, with room for descriptions of tools."""
    shape = tiny_config(TINY, vocab_size=pieces.vocab_size, max_position_embeddings=2048)
    return LanguageModel(random_model(shape), pieces)


def post(client: TestClient, path: str, body: dict[str, Any], **more: Any) -> Any:
    answer = client.post(path, json={**body, **more})
    assert answer.status_code == 200, answer.text
    return answer


def events(client: TestClient, path: str, body: dict[str, Any], **more: Any) -> list[Any]:
    text = post(client, path, body, stream=True, **more).text
    lines = [line for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_response_of_a_schema(client: TestClient) -> None:
    text = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA}}
    answer = post(client, "/v1/responses", RESPONSE, text=text).json()
    assert answer["status"] == "completed"
    assert json.loads(answer["output"][0]["content"][0]["text"])["ok"] in (True, False)


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_response_that_calls(client: TestClient, logprobs: bool) -> None:
    more: dict[str, Any] = {"tools": [FUNCTION], "tool_choice": "required"}
    more |= {"parallel_tool_calls": False}
    if logprobs:
        more["top_logprobs"] = 2
    answer = post(client, "/v1/responses", RESPONSE, **more).json()
    (call,) = answer["output"]
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert json.loads(call["arguments"])["city"] in CITIES
    told = events(client, "/v1/responses", RESPONSE, **more)
    parts = [e["delta"] for e in told if e["type"] == "response.function_call_arguments.delta"]
    assert "".join(parts) == call["arguments"]
    # Its output, sent back with the result.
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    back = [{"role": "user", "content": "Hello"}, call, result]
    again = post(client, "/v1/responses", {**RESPONSE, "input": back}, max_output_tokens=4)
    assert again.json()["output"]


def test_a_message_of_a_schema(client: TestClient) -> None:
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = post(client, "/v1/messages", MESSAGE, output_config=config).json()
    assert answer["stop_reason"] == "end_turn"
    assert json.loads(answer["content"][0]["text"])["ok"] in (True, False)


def test_a_message_that_calls(client: TestClient) -> None:
    more = {"tools": [TOOL], "tool_choice": ONE}
    answer = post(client, "/v1/messages", MESSAGE, **more).json()
    assert answer["stop_reason"] == "tool_use"
    (call,) = answer["content"]
    assert (call["type"], call["name"]) == ("tool_use", "weather")
    assert call["input"]["city"] in CITIES
    told = events(client, "/v1/messages", MESSAGE, **more)
    deltas = [e["delta"] for e in told if e["type"] == "content_block_delta"]
    arguments = "".join(delta["partial_json"] for delta in deltas)
    assert json.loads(arguments) == call["input"]


@pytest.mark.parametrize(
    ("path", "body", "more", "reason"),
    [
        ("/v1/responses", RESPONSE, {"tools": [FUNCTION, FUNCTION]}, "two tools"),
        ("/v1/responses", RESPONSE, {"tool_choice": "required"}, "there are no tools"),
        ("/v1/responses", RESPONSE, {"tools": [{**FUNCTION, "name": "a b"}]}, "tools"),
        (
            "/v1/responses",
            RESPONSE,
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
            "Unimplemented keys",
        ),
        ("/v1/messages", MESSAGE, {"tools": [TOOL], "tool_choice": {"type": "tool"}}, "a name"),
        (
            "/v1/messages",
            MESSAGE,
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
            "not among the tools",
        ),
        (
            "/v1/messages",
            MESSAGE,
            {"tools": [{**TOOL, "input_schema": {"type": "array"}}]},
            "arguments are an",
        ),
    ],
)
def test_what_cannot_be_used_is_400(
    client: TestClient, path: str, body: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    answer = client.post(path, json={**body, **more})
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


def test_descriptions_of_tools_are_counted(client: TestClient) -> None:
    counts = []
    for more in ({}, {"tools": [TOOL]}):
        body = {"model": NAME, "messages": MESSAGE["messages"], **more}
        counts.append(client.post("/v1/messages/count_tokens", json=body).json()["input_tokens"])
    for more in ({}, {"tools": [FUNCTION]}):
        body = {"model": NAME, "input": "Hello", **more}
        answer = client.post("/v1/responses/input_tokens", json=body).json()
        counts.append(answer["input_tokens"])
    assert counts[0] == counts[2]
    assert counts[0] + 100 < counts[1]
    assert counts[2] + 100 < counts[3]
