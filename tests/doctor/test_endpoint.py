"""Bugs seen from outside, through log-probabilities alone, and servers that cannot be examined."""

import socket
from typing import Any

import pytest
import torch
from fake_server import Server, felt_model

from gemmule.doctor.examine import run_doctor
from gemmule.errors import ConfigError
from gemmule.infer.language_model import LanguageModel
from gemmule.model.gemma import Gemma


def rows(folder: str, server: Server) -> dict[str, tuple[str, str]]:
    report = run_doctor(folder, backend="openai", url=server.url)
    return {row.check: (row.result, row.meaning) for row in report.rows}


def failures(folder: str, server: Server) -> dict[str, str]:
    return {c: meaning for c, (result, meaning) in rows(folder, server).items() if result == "FAIL"}


def other(lm: LanguageModel, **changes: Any) -> Gemma:
    """The same weights in a model of another config."""
    model = Gemma(lm.config.model_copy(update=changes))
    model.load_state_dict(lm.model.state_dict())
    return model


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize(
    ("changes", "check", "says"),
    [
        ({"attn_logit_softcapping": None}, "attention soft cap", "attention cap is missing"),
        ({"final_logit_softcapping": None}, "final soft cap", "final cap is missing"),
        (
            {"attn_logit_softcapping": 30.0, "final_logit_softcapping": 50.0},
            "caps not swapped",
            "swapped",
        ),
        ({"sliding_window": 10}, "sliding window", "one key too wide"),
        ({"query_pre_attn_scalar": 16}, "query scale", "1/sqrt(head_dim)"),
    ],
)
def test_a_bug_of_the_served_model(
    lm: LanguageModel,
    folder: str,
    server: Server,
    changes: dict[str, Any],
    check: str,
    says: str,
    echo: bool,
) -> None:
    server.model, server.echo = other(lm, **changes), echo
    failed = failures(folder, server)
    assert list(failed) == [check], failed
    assert says in failed[check]


def test_log_probabilities_as_llama_cpp_has_them(
    lm: LanguageModel, folder: str, server: Server
) -> None:
    server.llama, server.echo = True, False
    assert not failures(folder, server)
    server.model = other(lm, final_logit_softcapping=None)
    assert list(failures(folder, server)) == ["final soft cap"]


@pytest.mark.parametrize("echo", [True, False])
@pytest.mark.parametrize(("count", "says"), [(0, "without <bos>"), (2, "with two <bos>")])
def test_number_of_bos(folder: str, server: Server, count: int, says: str, echo: bool) -> None:
    server.bos, server.echo = count, echo
    failed = failures(folder, server)
    assert list(failed) == ["one <bos>"], failed
    assert says in failed["one <bos>"]


def test_decoding_bug(lm: LanguageModel, folder: str, server: Server) -> None:
    server.decoding = other(lm, sliding_window=3)
    assert list(failures(folder, server)) == ["prefill = decode"]


def test_batch_dependence(folder: str, server: Server) -> None:
    server.beside = 1e-2
    assert list(failures(folder, server)) == ["batch invariance"]


def test_another_model_is_served(folder: str, server: Server) -> None:
    wrong = felt_model()
    with torch.no_grad():
        wrong.layers[1].mlp.up_proj.weight[:20].mul_(2)
    server.model = wrong
    assert list(failures(folder, server)) == ["nothing else differs"]


def test_what_would_not_show_is_not_passed(
    lm: LanguageModel, folder: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freshly drawn weights come near no cap: in bf16 they say nothing about one."""
    torch.manual_seed(0)
    tame = LanguageModel(Gemma(lm.config), lm.tokenizer)
    monkeypatch.setattr("gemmule.doctor.examine.load", lambda *_, **__: tame)
    server.model = other(lm, attn_logit_softcapping=None)
    server.model.load_state_dict(tame.model.state_dict())
    report = run_doctor(folder, backend="openai", url=server.url, dtype="bfloat16")
    by_check = {row.check: row for row in report.rows}
    assert by_check["attention soft cap"].result == "cannot tell"
    assert "would not show if the attention cap" in by_check["attention soft cap"].meaning
    assert by_check["nothing else differs"].result == "pass"


@pytest.mark.parametrize(
    ("status", "message"), [(401, "requires a key"), (404, "ending in /v1"), (500, "HTTP 500")]
)
def test_http_errors(folder: str, server: Server, status: int, message: str) -> None:
    server.status = status
    with pytest.raises(ConfigError, match=message):
        run_doctor(folder, backend="openai", url=server.url)


def test_a_web_page_is_no_api(folder: str, server: Server) -> None:
    server.body = b"<html>Hello</html>"
    with pytest.raises(ConfigError, match="did not answer with JSON but '<html>Hello"):
        run_doctor(folder, backend="openai", url=server.url)


def test_a_name_that_is_not_served(folder: str, server: Server) -> None:
    with pytest.raises(ConfigError, match="check the name of the model, 'large'"):
        run_doctor(folder, backend="openai", url=server.url, served="large")


def test_nobody_listens(folder: str) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}/v1"
    with pytest.raises(ConfigError, match=r"does not answer .*: is the server running"):
        run_doctor(folder, backend="openai", url=url)


def test_no_log_probabilities(folder: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = {"choices": [{"index": 0, "text": "x", "logprobs": None}]}
    monkeypatch.setattr(server, "completion", lambda request: bare)
    with pytest.raises(ConfigError, match="returns no log-probabilities"):
        run_doctor(folder, backend="openai", url=server.url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "vllm"}, "unknown backend 'vllm'"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"backend": "openai"}, "--backend openai needs --url"),
        ({"url": "http://127.0.0.1:1/v1"}, "--backend openai needs --url"),
        ({"backend": "openai", "url": "localhost:8000"}, "is not an address"),
    ],
)
def test_options_are_checked(folder: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_doctor(folder, **options)
