"""/v1/completions: prompts of every form, echo with log-probabilities, streams."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from sse_events import chunks, texts
from starlette.testclient import TestClient

from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.language_model import LanguageModel

PATH = "/v1/completions"
TEXT = "the old captain said "
ASK: dict[str, Any] = {"prompt": TEXT, "seed": 4, "max_tokens": 8, "temperature": 1.5}


def ask(client: TestClient, **more: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={**ASK, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(client: TestClient, **more: Any) -> list[dict[str, Any]]:
    answer = client.post(PATH, json={**ASK, **more, "stream": True})
    assert answer.status_code == 200, answer.text
    return chunks(answer.text)


def params(**changes: Any) -> SamplingParams:
    values = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 1.0, "seed": 4}
    return SamplingParams(**{**values, **changes})


def test_prompts_of_every_form(client: TestClient, lm: LanguageModel) -> None:
    ids = [lm.tokenizer.encode(text, bos=True) for text in (TEXT, "red sail")]
    expected = [done.text for i in ids for done in lm.complete([i], params(n=2))]
    forms: list[tuple[Any, int]] = [
        (TEXT, 1), ([TEXT, "red sail"], 2), (ids[0], 1), (ids, 2),
    ]  # fmt: skip
    for prompt, count in forms:
        answer = ask(client, prompt=prompt, n=2)
        assert [choice["index"] for choice in answer["choices"]] == [*range(2 * count)]
        assert [choice["text"] for choice in answer["choices"]] == expected[: 2 * count]
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids[:count]))
        assert texts(stream(client, prompt=prompt, n=2)) == dict(enumerate(expected[: 2 * count]))


def test_bos_can_be_left_out(client: TestClient, lm: LanguageModel) -> None:
    answer = ask(client, add_special_tokens=False, return_token_ids=True)
    assert answer["choices"][0]["prompt_token_ids"] == lm.tokenizer.encode(TEXT)


def test_text_of_a_prompt_never_becomes_control_tokens(
    client: TestClient, lm: LanguageModel
) -> None:
    text = "<bos><start_of_turn>user\nthe sea<end_of_turn><eos>"
    answer = ask(client, prompt=text, return_token_ids=True)
    bos, *ids = answer["choices"][0]["prompt_token_ids"]
    assert bos == lm.tokenizer.bos_id
    assert lm.tokenizer.decode(ids) == text


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("top", [0, 1, 5])
def test_echo_has_the_log_probabilities_of_score(
    client: TestClient, lm: LanguageModel, max_tokens: int, top: int
) -> None:
    """What lm-eval's local-completions reads, equal to the engine's own to the bit."""
    ids = lm.tokenizer.encode(TEXT, bos=True)
    answer = ask(client, prompt=ids, max_tokens=max_tokens, echo=True, logprobs=top, temperature=0)
    (choice,) = answer["choices"]
    lists = choice["logprobs"]
    assert {len(values) for values in lists.values()} == {len(ids) + max_tokens}
    (score,) = lm.engine().score([(ids[:1], ids[1:])])
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    assert lists["token_logprobs"][1 : len(ids)] == [*score.log_probs]
    if top:
        greedy = [
            value == max(places.values())
            for value, places in zip(
                lists["token_logprobs"][1:], lists["top_logprobs"][1:], strict=True
            )
        ]
        assert greedy[: len(ids) - 1] == [*score.greedy]
        assert all(greedy[len(ids) - 1 :])
    assert choice["text"].startswith(TEXT)
    assert answer["usage"]["completion_tokens"] == max_tokens
    assert choice["finish_reason"] == "length"


def test_numbers_read_back_equal(client: TestClient, lm: LanguageModel) -> None:
    """JSON of a float must be the float: also one that needs 17 digits."""
    values = [1 / 3, math.pi * -1e-5, -25.751568317413330078]
    assert json.loads(json.dumps(values)) == values
    ids = lm.tokenizer.encode(TEXT, bos=True)
    (expected,) = lm.complete([ids], params(logprobs=0))
    assert expected.logprobs is not None
    numbers = ask(client, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"]
    assert numbers == [entry.logprob for entry in expected.logprobs]


def test_text_offsets_are_where_the_tokens_are(client: TestClient) -> None:
    text = "a é 漢 \N{SMILING FACE WITH SUNGLASSES} sea"
    (choice,) = ask(client, prompt=text, echo=True, logprobs=0, max_tokens=0)["choices"]
    assert choice["text"] == text
    lists = choice["logprobs"]
    for token, offset in zip(lists["tokens"], lists["text_offset"], strict=True):
        if token == "<bos>":
            assert offset == 0
        elif not token.startswith("bytes:"):
            assert text[offset:].startswith(token)
    parts = b"".join(
        bytes.fromhex(token[6:].replace("\\x", ""))
        if token.startswith("bytes:")
        else token.encode()
        for token in lists["tokens"][1:]
    )
    assert parts.decode() == text


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_a_stream_has_the_same_lists(client: TestClient, max_tokens: int) -> None:
    more = {"echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2}
    whole = ask(client, **more)
    events = stream(client, **more)
    assert texts(events) == {c["index"]: c["text"] for c in whole["choices"]}
    for choice in whole["choices"]:
        parts = [
            part["logprobs"]
            for event in events
            for part in event["choices"]
            if part["index"] == choice["index"] and part["logprobs"]
        ]
        for name, values in choice["logprobs"].items():
            assert [value for part in parts for value in part[name]] == values


def test_both_kinds_of_log_probabilities_of_the_prompt(client: TestClient) -> None:
    for top, wanted in ((1, 4), (4, 1)):
        (choice,) = ask(client, echo=True, logprobs=top, prompt_logprobs=wanted)["choices"]
        prompt = len(choice["prompt_logprobs"])
        assert all(len(place) in (wanted, wanted + 1) for place in choice["prompt_logprobs"][1:])
        places = choice["logprobs"]["top_logprobs"][1:prompt]
        assert all(len(place) in (top, top + 1) for place in places)


def test_echo_without_log_probabilities(client: TestClient) -> None:
    (choice,) = ask(client, echo=True)["choices"]
    assert choice["text"] == TEXT + ask(client)["choices"][0]["text"]
    assert ask(client, echo=True, max_tokens=0)["choices"][0]["text"] == TEXT


def test_penalties_bias_and_ends_reach_the_engine(client: TestClient, lm: LanguageModel) -> None:
    ids = lm.tokenizer.encode(TEXT, bos=True)
    token = lm.tokenizer.encode("ship")[0]
    for fields, settings in (
        ({"logit_bias": {str(token): 100}}, {"logit_bias": {token: 100}}),
        ({"presence_penalty": 1.5, "frequency_penalty": -0.5}, None),
        ({"repetition_penalty": 1.3, "top_k": 5, "min_p": 0.01}, None),
        ({"min_tokens": 8}, None),
        ({"ignore_eos": True, "top_p": 0.5}, None),
        ({"top_k": -1}, {}),
        ({"temperature": 999999}, None),
    ):
        expected = lm.complete([ids], params(**(fields if settings is None else settings)))  # type: ignore[arg-type]
        assert ask(client, **fields)["choices"][0]["text"] == expected[0].text, fields


def test_more_prompts_than_may_wait_are_refused(make_client: Callable[..., TestClient]) -> None:
    client = make_client(max_waiting=3, max_running=1)
    answer = client.post(PATH, json={**ASK, "prompt": [TEXT] * 3, "n": 2})
    assert answer.status_code == 400
    assert "at most 4" in answer.json()["error"]["message"]
