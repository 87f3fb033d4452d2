"""/openapi.json describes every route, and is what OpenAPI 3.1 says it must be."""

import json
import re
from collections.abc import Callable

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.testclient import TestClient

from gemmule.serve.app import api_routes
from gemmule.serve.page import page_files

Clients = Callable[..., TestClient]


def described(client: TestClient) -> dict[str, dict[str, dict[str, object]]]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()["paths"]


def test_it_is_valid(client: TestClient) -> None:
    OpenAPIV31SpecValidator(client.get("/openapi.json").json()).validate()


def test_every_route_is_described(client: TestClient) -> None:
    paths = described(client)
    pages = {file.path for file in page_files()}
    served = {
        (re.sub(r":\w+\}", "}", route.path), method)
        for route in client.app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
        if route.path not in pages
    }
    assert served == {(p, method.upper()) for p, methods in paths.items() for method in methods}
    operations = [operation for methods in paths.values() for operation in methods.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert all(operation["summary"] for operation in operations)


def test_streams_and_errors_are_described(client: TestClient) -> None:
    paths = described(client)
    for route in api_routes():
        for path in route.paths:
            operation = paths[re.sub(r":\w+\}", "}", path)][route.method.lower()]
            answers = json.dumps(operation["responses"])
            assert ("text/event-stream" in answers) == (route.event is not None)
            form = "MessageErrorAnswer" if route.errors == "anthropic" else "ErrorAnswer"
            assert f'schemas/{form}"' in answers
            assert ("requestBody" in operation) == (route.body is not None)


def test_keys_are_described_where_they_are_needed(make_client: Clients) -> None:
    client = make_client(keys=("secret",))
    paths = client.get("/openapi.json", headers={"x-api-key": "secret"}).json()["paths"]
    assert "security" in paths["/v1/models"]["get"]
    assert "security" not in paths["/health"]["get"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/health"])
def test_answers_have_the_fields_that_are_described(client: TestClient, path: str) -> None:
    route = next(r for r in api_routes() if re.sub(r"\{.*\}", "tiny", r.path).endswith(path))
    assert route.answer is not None
    answer = client.get(path).json()
    assert route.answer.model_validate(answer).model_dump() == answer
