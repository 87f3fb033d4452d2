"""Text of answers: split characters, stop strings across tokens, what is held back."""

from collections.abc import Callable
from typing import Any

import pytest
from engines import ScriptedModel, byte_tokens
from sse_events import chunks, texts
from starlette.testclient import TestClient

from gemmule.infer.language_model import LanguageModel

EOS = 1
EMOJI = "a\N{SMILING FACE WITH SUNGLASSES}漢é\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}z"


@pytest.fixture
def answers(
    lm: LanguageModel, make_client: Callable[..., TestClient]
) -> Callable[..., tuple[str, list[str], dict[str, Any]]]:
    """answers(ids, **fields): text of an answer, the parts of its stream, and the whole answer."""

    def ask(script: list[int], **fields: Any) -> tuple[str, list[str], dict[str, Any]]:
        client = make_client({"scripted": ScriptedModel(lm, script)})
        body = {"prompt": "x", "temperature": 0, "max_tokens": 100, **fields}
        whole = client.post("/v1/completions", json=body).json()
        events = chunks(client.post("/v1/completions", json={**body, "stream": True}).text)
        text = whole["choices"][0]["text"]
        parts = [choice["text"] for event in events for choice in event["choices"]]
        assert "".join(parts) == text
        chat = {k: v for k, v in body.items() if k not in ("prompt", "logprobs")}
        chat["messages"] = [{"role": "user", "content": "x"}]
        answer = client.post("/v1/chat/completions", json=chat).json()
        assert answer["choices"][0]["message"]["content"] == text
        events = chunks(client.post("/v1/chat/completions", json={**chat, "stream": True}).text)
        assert texts(events)[0] == text
        return text, parts, whole

    return ask


def test_characters_split_over_tokens_come_whole(answers: Any) -> None:
    text, parts, _ = answers([*byte_tokens(EMOJI), EOS])
    assert text == EMOJI
    assert not any("\ufffd" in part for part in parts)


def test_bytes_that_are_no_text_are_replaced_and_raise_nothing(answers: Any) -> None:
    text, _, _ = answers([217 + 0xFF, 217 + 0xF0, 217 + 0x9F, *byte_tokens("b"), EOS])
    assert text == "\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("script", "stop", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STOP two", ["STOP", "E S", "zz"], "one "),
        ("one STO", ["STOP"], "one STO"),  # held back, and given at the end
        ("SSSSTOP", ["SSTOP"], "SS"),
        ("STOP", ["STOP"], ""),
        ("a漢STOPb", ["漢STOP"], "a"),
        ("aab", ["ab"], "a"),
    ],
)
def test_stop_strings_across_tokens(
    answers: Any, script: str, stop: list[str], expected: str
) -> None:
    text, parts, whole = answers([*byte_tokens(script), EOS], stop=stop)
    assert text == expected
    for i in range(len(parts)):  # no beginning of a stop string was shown before
        assert expected.startswith("".join(parts[: i + 1]))
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_held_text_comes_at_the_limit_too(answers: Any) -> None:
    text, _, whole = answers(byte_tokens("one STO"), stop=["STOP"], max_tokens=7)
    assert text == "one STO"
    assert whole["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("extra", ["", "!", " and more"])
def test_nothing_after_the_stop_is_given(answers: Any, extra: str) -> None:
    """Also where nothing follows it, which an index of minus zero gets wrong."""
    text, _, _ = answers([*byte_tokens(f"yes.{extra}"), EOS], stop=["."])
    assert text == "yes"


def test_the_stop_token_is_counted_but_has_no_text_and_no_entry(answers: Any) -> None:
    text, _, whole = answers([*byte_tokens("ab"), EOS], logprobs=0, return_token_ids=True)
    assert text == "ab"
    assert whole["usage"]["completion_tokens"] == 3
    assert whole["choices"][0]["token_ids"] == byte_tokens("ab")
    assert whole["choices"][0]["logprobs"]["tokens"] == ["a", "b"]


def test_control_tokens_of_the_model_have_no_text(answers: Any) -> None:
    text, _, _ = answers([106, *byte_tokens("a"), 2, 5, EOS])
    assert "<start_of_turn>" not in text
    assert text.startswith("a")


def test_line_ends_and_quotes_survive_the_stream(answers: Any) -> None:
    """None of them may end an event."""
    hostile = 'a\n\ndata: x\r\n\r\r"\\\u2028\u2029\x00\x85b'
    assert answers([*byte_tokens(hostile), EOS])[0] == hostile


def test_an_answer_that_fails_is_500_or_an_event(
    lm: LanguageModel, make_client: Callable[..., TestClient]
) -> None:
    client = make_client({"scripted": ScriptedModel(lm, [*byte_tokens("ab"), -1])})
    body = {"prompt": "x", "temperature": 0, "max_tokens": 9}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "engine_error"
    text = client.post("/v1/completions", json={**body, "stream": True}).text
    *parts, last = chunks(text)
    assert texts(parts) == {0: "ab"}
    assert last["error"] == error
