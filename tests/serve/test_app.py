"""The routes that need no generation, in process and over a socket."""

import pytest
from served import NAME, LiveServer
from starlette.testclient import TestClient

from gemmule.errors import ConfigError
from gemmule.serve.sampling_fields import SamplingFields
from gemmule.serve.settings import ServeSettings


def test_health_and_models(client: TestClient) -> None:
    for prefix in ("", "/v1"):
        assert client.get(f"{prefix}/health").json() == {"status": "ok"}
        entries = client.get(f"{prefix}/models").json()["data"]
        assert [entry["id"] for entry in entries] == [NAME]
        assert entries[0]["meta"]["n_ctx_train"] == 256
        assert client.get(f"{prefix}/models/{NAME}").json() == entries[0]


def test_models_say_what_requests_that_set_nothing_get(client: TestClient) -> None:
    defaults = client.get("/v1/models").json()["data"][0]["gemmule"]["defaults"]
    assert defaults.pop("max_tokens") is None
    fields = {"max_tokens": None, "room": 8, "logprobs": None}
    silent = SamplingFields().sampling_params(ServeSettings(), **fields)
    assert SamplingFields(**defaults).sampling_params(ServeSettings(), **fields) == silent


def test_an_unknown_model_path_or_method_is_an_error_in_openai_s_form(client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/models", 405),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_live_server_answers(live_server: LiveServer) -> None:
    with live_server.client() as client:
        assert client.get("/health").status_code == 200


def test_other_machines_are_let_in_with_a_key_only() -> None:
    with pytest.raises(ConfigError, match="no API key"):
        ServeSettings(host="0.0.0.0")
    ServeSettings(host="0.0.0.0", keys=("secret",))
    ServeSettings(host="0.0.0.0", insecure=True)
