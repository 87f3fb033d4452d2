"""The routes that need no generation, in process and over a socket."""

import threading
import time
from pathlib import Path

import pytest
from served import NAME, LiveServer
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel
from gemmule.serve.app import make_app
from gemmule.serve.model_source import ModelSource
from gemmule.serve.sampling_fields import SamplingFields
from gemmule.serve.served_models import ServedModels
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
    for host in ("0.0.0.0", "::", "192.168.1.4", "box.lan", ""):
        with pytest.raises(ConfigError, match="no API key"):
            ServeSettings(host=host)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        ServeSettings(host=host)
    ServeSettings(host="0.0.0.0", keys=("secret",))
    ServeSettings(host="0.0.0.0", insecure=True)


def test_the_application_can_be_mounted_in_another(lm: LanguageModel) -> None:
    settings = ServeSettings(keys=("secret",))
    api = make_app(ServedModels.of({NAME: lm}, settings), settings)
    outer = Starlette(
        routes=[Mount("/llm", api)], lifespan=lambda app: api.router.lifespan_context(api)
    )
    with TestClient(outer, base_url="http://127.0.0.1") as client:
        assert client.get("/llm/health").status_code == 200
        assert client.get("/llm/").status_code == 200
        assert client.get("/llm/v1/models").status_code == 401
        key = {"x-api-key": "secret"}
        assert client.get("/llm/v1/models", headers=key).json()["data"][0]["id"] == NAME
        body = {"prompt": "the ship", "max_tokens": 2}
        answer = client.post("/llm/v1/completions", json=body, headers=key)
        assert answer.json()["usage"]["completion_tokens"] == 2


def test_models_are_loaded_while_health_says_so(lm: LanguageModel) -> None:
    go = threading.Event()

    def load() -> LanguageModel:
        assert go.wait(10)
        return lm

    settings = ServeSettings()
    models = ServedModels([ModelSource((NAME,), load, lm.config, 1)], settings)
    app = make_app(models, settings, wait_for_models=False)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for method, path in (("GET", "/health"), ("POST", "/v1/completions")):
            answer = client.request(method, path, json={"prompt": "a"})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "loading"
        assert client.get("/v1/models").json()["data"][0]["gemmule"]["loaded"] is False
        go.set()
        deadline = time.monotonic() + 10
        while client.get("/health").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.get("/health").json() == {"status": "ok"}


def test_the_card_of_a_model(lm: LanguageModel, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# The sea")
    settings = ServeSettings()
    sources = [
        ModelSource(("org/a", "b"), lambda: lm, lm.config, 1, card=card),
        ModelSource(("c",), lambda: lm, lm.config, 1, card=tmp_path / "gone.md"),
        ModelSource(("d",), lambda: lm, lm.config, 1),
    ]
    app = make_app(ServedModels(sources, settings), settings)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for name in ("org/a", "b"):
            answer = client.get(f"/v1/models/{name}/card")
            assert answer.text == "# The sea"
            assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
        assert client.get("/v1/models/org/a").json()["id"] == "org/a"
        for name in ("c", "d", "x"):
            answer = client.get(f"/v1/models/{name}/card")
            assert answer.status_code == 404
            assert str(tmp_path) not in answer.text
