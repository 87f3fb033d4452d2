"""Bodies with values at random: whatever is sent, no status is 500 or above."""

import json
import random
from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient

from gemmule.serve.openai.schemas import ChatCompletionRequest, CompletionRequest
from gemmule.serve.tokenize import DetokenizeRequest, TemplateRequest, TokenizeRequest

CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
ROUTES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatCompletionRequest, CHAT),
    "/v1/completions": (CompletionRequest, {"prompt": "a", "max_tokens": 3}),
    "/v1/tokenize": (TokenizeRequest, {"content": "a"}),
    "/v1/detokenize": (DetokenizeRequest, {"tokens": [5]}),
    "/v1/apply-template": (TemplateRequest, {"messages": CHAT["messages"]}),
}
SIMPLE: list[Any] = [
    None, True, False, 0, 1, 2, -1, 8, 20, 21, 10**6, 2**63, 2**64, -(2**70), 0.0, 0.5, 1.5, -1.0,
    1e308, 1e-300, float("nan"), float("inf"), "", "a", "user", "text", "auto", "none", "\x00",
    "<eos>", "漢" * 5, "x" * 300, [1, 2, 3], ["a", "b"], {"include_usage": True}, {"5": 1.0},
    {"type": "json_object"}, [{"role": "user", "content": "a"}],
]  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(10) if depth < 3 else 0
    if kind == 1:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 2:
        names = rng.sample(["role", "content", "type", "text", "function", "schema"], 3)
        return {name: value(rng, depth + 1) for name in names}
    return rng.choice(SIMPLE)


@pytest.mark.parametrize("path", ROUTES)
def test_no_body_is_the_server_s_fault(client: TestClient, path: str) -> None:
    schema, base = ROUTES[path]
    names = [*schema.model_fields, *getattr(schema, "refused", ())]
    rng = random.Random(path)
    statuses = set()
    for _ in range(150):
        body = {**base, **{name: value(rng) for name in rng.choices(names, k=rng.randrange(4))}}
        answer = client.post(path, content=json.dumps(body))
        assert answer.status_code < 500, (body, answer.text)
        statuses.add(answer.status_code)
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]
        elif "event-stream" in answer.headers["content-type"]:
            assert '"error"' not in answer.text
    assert {200, 400} <= statuses
