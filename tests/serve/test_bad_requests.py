"""Requests that are refused: 400 before anything is sent, with the name of what is wrong."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from gemmule.serve.anthropic.schemas import MessagesRequest
from gemmule.serve.api_errors import ApiError
from gemmule.serve.openai.schemas import ChatCompletionRequest, CompletionRequest
from gemmule.serve.request_body import parse_body
from gemmule.serve.responses.schemas import ResponsesRequest
from gemmule.serve.tokenize import DetokenizeRequest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "the sea"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"prompt": "the sea", "max_tokens": 2}
PATHS = {"/v1/chat/completions": CHAT, "/v1/completions": TEXT}


def refused(client: TestClient, path: str, body: Any, param: str | None, *words: str) -> None:
    for more in ({}, {"stream": True}) if isinstance(body, dict) else ({},):
        content = json.dumps({**body, **more}) if isinstance(body, dict) else body
        answer = client.post(path, content=content)
        assert answer.status_code == 400, (body, answer.text)
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param, error
        assert all(word in error["message"] for word in words), error
        assert len(error["message"]) < 1100


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1), ("temperature", "hot"), ("temperature", True), ("top_p", -1),
        ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("min_p", 2), ("seed", -1), ("seed", 2**70),
        ("seed", 1.5), ("n", 0), ("n", 9), ("n", 10**9), ("max_tokens", -1), ("max_tokens", 0),
        ("stop", ["a"] * 5), ("stop", ""), ("stop", [""]), ("stop", [1]), ("stop", {}),
        ("presence_penalty", 3), ("frequency_penalty", -3), ("repetition_penalty", 0),
        ("repetition_penalty", 1e-300), ("repetition_penalty", 101),
        ("logit_bias", {"x": 1}), ("logit_bias", {"1": "a"}), ("logit_bias", {"1": 101}),
        ("logit_bias", [1]), ("logit_bias", {"1": 10**400}), ("min_tokens", 3), ("min_tokens", -1),
        ("ignore_eos", 1), ("stream_options", []), ("model", 1), ("prompt_logprobs", -1),
        ("prompt_logprobs", 21), ("temprature", 1), ("best_off", None), ("guided_json", {}),
        ("user", 1),
    ],
)  # fmt: skip
def test_values_out_of_range_and_unknown_names(
    client: TestClient, path: str, name: str, value: Any
) -> None:
    body = {**PATHS[path], name: value}
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == name
    assert name in error["message"]


@pytest.mark.parametrize("name", [*ChatCompletionRequest.refused])
def test_what_a_chat_does_not_do_is_said(client: TestClient, name: str) -> None:
    refused(client, "/v1/chat/completions", {**CHAT, name: "x"}, name, name, "not supported")
    assert client.post("/v1/chat/completions", json={**CHAT, name: None}).status_code == 200


@pytest.mark.parametrize(("name", "value"), [("suffix", "x"), ("best_of", 2)])
def test_what_completions_do_not_do_is_said(client: TestClient, name: str, value: Any) -> None:
    refused(client, "/v1/completions", {**TEXT, name: value}, name, name)
    assert client.post("/v1/completions", json={**TEXT, name: None}).status_code == 200
    assert "suffix" in CompletionRequest.refused


def test_fields_that_depend_on_each_other(client: TestClient) -> None:
    chat = "/v1/chat/completions"
    refused(client, chat, {**CHAT, "top_logprobs": 2}, "top_logprobs", "logprobs: true")
    more = {"logprobs": True, "top_logprobs": 21}
    refused(client, chat, {**CHAT, **more}, "top_logprobs", "0 to 20")
    refused(
        client, chat, {**CHAT, "max_completion_tokens": 3}, "max_completion_tokens", "different"
    )
    more = {"continue_final_message": True, "add_generation_prompt": True}
    refused(client, chat, {**CHAT, **more}, "add_generation_prompt", "exclude")
    refused(client, chat, {**CHAT, "continue_final_message": True}, "continue_final_message")
    for path, body in PATHS.items():
        answer = client.post(path, json={**body, "prompt_logprobs": 1, "stream": True})
        assert answer.status_code == 400
        for name, value in (("return_progress", True), ("stream_options", {"include_usage": True})):
            answer = client.post(path, json={**body, name: value})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize(
    "messages",
    [
        [], None, "hello", [1], [{}], [{"role": "user"}], [{"content": "a"}],
        [{"role": "robot", "content": "a"}], [{"role": "user", "content": 1}],
        [{"role": "user", "content": None}], [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}],
        [{"role": "user", "content": "a", "name": "b"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
        [{"role": "tool", "content": "a"}],
    ],
)  # fmt: skip
def test_conversations_that_cannot_be_answered(client: TestClient, messages: Any) -> None:
    refused(client, "/v1/chat/completions", {**CHAT, "messages": messages}, "messages")


@pytest.mark.parametrize(
    "prompt", [None, 1, [], [[]], [1, "a"], [[1], "a"], [True], [1.5], {"a": 1}, [[1], []]]
)
def test_prompts_that_are_none(client: TestClient, prompt: Any) -> None:
    refused(client, "/v1/completions", {**TEXT, "prompt": prompt}, "prompt", "it must be a text")


def test_token_ids_that_the_model_does_not_have(client: TestClient) -> None:
    for prompt in ([10**9], [-1], [2**70]):
        refused(client, "/v1/completions", {**TEXT, "prompt": prompt}, None, "ids are 0 to")


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (ChatCompletionRequest, {"messages": [1] * 50_000}),
        (ChatCompletionRequest, {**CHAT, "tools": [1] * 50_000}),
        (ChatCompletionRequest, {**CHAT, "metadata": {str(i): 1 for i in range(50_000)}}),
        (ChatCompletionRequest, {**CHAT, **{f"unknown {i}": 1 for i in range(50_000)}}),
        (CompletionRequest, {**TEXT, "structured_outputs": {"choice": [1] * 50_000}}),
        (MessagesRequest, {"model": "m", "max_tokens": 1, "messages": [1] * 50_000}),
        (ResponsesRequest, {"input": [1] * 50_000}),
        (ResponsesRequest, {"input": "a", "include": [1] * 50_000}),
        (DetokenizeRequest, {"tokens": ["a"] * 50_000}),
        (CompletionRequest, {**TEXT, "logit_bias": {str(i): 1 for i in range(50_000)}}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:40],
)
def test_a_body_full_of_mistakes_costs_little(schema: type[BaseModel], body: Any) -> None:
    """Each error that is kept takes about a kilobyte; only the first one is told."""
    content = json.dumps(body)
    with pytest.raises(ValidationError) as raised:
        schema.model_validate_json(content)
    assert raised.value.error_count() < 300
    with pytest.raises(ApiError) as told:
        parse_body(content.encode(), schema)
    assert told.value.status == 400
    assert len(told.value.message) < 1100


def test_a_conversation_of_too_many_messages(client: TestClient) -> None:
    messages = [{"role": "user", "content": ""}] * 10_001
    refused(client, "/v1/chat/completions", {**CHAT, "messages": messages}, "messages", "10000")


def test_a_limit_without_bounds_is_as_good_as_none(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={**TEXT, "max_tokens": 2**63 - 1})
    assert answer.status_code == 200
    assert answer.json()["usage"]["total_tokens"] <= 257
    (line,) = (
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("gemmule:request_params_max_tokens_sum")
    )
    assert float(line.split()[-1]) <= 1e6


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"1", b'"x"', b"null", b"\xff\xfe", b'{"model": "\xff"}',
        b'{"user": "\\ud800"}', b'{"user": "\\udc00"}', b'{"temperature": NaN}',
        b'{"temperature": Infinity}', b'{"user": "a" "b"}', b'{"user": \x00}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_json_of_unicode(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_a_prompt_that_is_too_long_is_refused_and_never_cut(client: TestClient) -> None:
    """400 with a count, and no stream; one that fits to the last token is taken whole."""
    for size in (260, 300_000):
        text = "sea " * size
        for path, body in (
            ("/v1/completions", {**TEXT, "prompt": text}),
            ("/v1/completions", {**TEXT, "prompt": [5] * size}),
            ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": text}]}),
        ):
            for stream in (False, True):
                answer = client.post(path, json={**body, "stream": stream})
                assert answer.status_code == 400
                error = answer.json()["error"]
                assert error["code"] == "context_length_exceeded"
                assert "context is 256" in error["message"]
    answer = client.post("/v1/completions", json={**TEXT, "prompt": [5] * 255}).json()
    assert answer["usage"] | {"prompt_tokens_details": None} == {
        "prompt_tokens": 255, "completion_tokens": 1, "total_tokens": 256,
        "prompt_tokens_details": None,
    }  # fmt: skip
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_model_that_is_not_there(client: TestClient) -> None:
    for path, body in PATHS.items():
        answer = client.post(path, json={**body, "model": "other"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"


def test_fields_whose_meaning_is_to_be_ignored(client: TestClient) -> None:
    more = {
        "user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto",
        "safety_identifier": "s", "prompt_cache_key": "k", "modalities": ["text"],
        "reasoning_effort": "none", "n": None, "stop": None, "logit_bias": None,
        "stream_options": None, "seed": None,
    }  # fmt: skip
    assert client.post("/v1/chat/completions", json={**CHAT, **more}).status_code == 200
    for name, value in (("store", True), ("service_tier", "flex"), ("modalities", ["audio"])):
        answer = client.post("/v1/chat/completions", json={**CHAT, name: value})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name


def test_values_are_named_as_json_writes_them(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json={**CHAT, "store": True})
    assert answer.json()["error"]["message"] == "store is true: it must be false"
