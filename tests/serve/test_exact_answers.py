"""The promise, over HTTP: a request with a seed has the same bits whatever else happens."""

import hashlib
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import httpx2 as httpx
import pytest
from engines import ModelWithEngine
from served import NAME, LiveServer, held_up, until
from sse_events import chunks
from starlette.testclient import TestClient

from gemmule.infer.core.speculative import NgramDrafter
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.serve.app import make_app
from gemmule.serve.served_models import ServedModels
from gemmule.serve.settings import ServeSettings

COUNT = 33
SYSTEM = "Say what the old captain of the red ship said to the wind in the harbour, and to the sea."
# Many prompts at once, so that there are too few pages.
PREEMPTING = {"cache_tokens": 224, "max_prompt_delay": None}
# Names of the engine's settings, and whether half of the clients leave.
VARIANTS: dict[str, tuple[dict[str, Any], bool]] = {
    "together": ({}, False),
    "preempted, with cancellations": (PREEMPTING, True),
    "speculating": ({"drafts": NgramDrafter}, False),
    "speculating in small steps, preempted, with cancellations": (
        {"drafts": NgramDrafter, "max_step_tokens": 24, **PREEMPTING},
        True,
    ),
}


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Chats and completions with all kinds of settings, many with a common beginning."""
    rng = random.Random(5)
    words = SYSTEM.split()
    made = []
    for i in range(COUNT):
        text = " ".join(rng.choices(words, k=rng.randint(1, 25)))
        body: dict[str, Any] = {
            "seed": i,
            "max_tokens": rng.randint(4, 40),
            "temperature": rng.choice([0, 0.8, 1.5]),
            "stream": bool(i % 2),
            "return_token_ids": True,
            "n": rng.choice([1, 1, 2]),
            **rng.choice([{}, {"top_k": 30}, {"top_p": 0.9}, {"frequency_penalty": 0.5}]),
            **rng.choice([{}, {}, {"ignore_eos": True}, {"stop": ["the "]}]),
        }
        if i % 3:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
            body |= {"messages": messages, "logprobs": True, "top_logprobs": rng.choice([0, 3])}
            made.append(("/v1/chat/completions", body))
        else:
            echo = bool(i % 2 == 0 and i % 4)
            body |= {"prompt": f"{SYSTEM} {text}", "logprobs": rng.choice([0, 2]), "echo": echo}
            made.append(("/v1/completions", body))
        if i % 16 == 5 and find_spec("llguidance"):
            body["structured_outputs"] = {"regex": "[a-z]{1,9}( [a-z]{1,9}){2,6}"}
    return made


def hash_of(choices: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream, their parts put together."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for part in event["choices"]:
            whole = choices.setdefault(part["index"], {"text": "", "ids": []})
            whole["text"] += part.get("text") or part.get("delta", {}).get("content") or ""
            whole["ids"] += part.get("token_ids") or []
            for name, entries in (part["logprobs"] or {}).items():
                whole.setdefault(name, []).extend(entries or ())
            whole["reason"] = part["finish_reason"]
    return [choices[i] for i in sorted(choices)]


def answer(client: Any, path: str, body: dict[str, Any]) -> str:
    """The hash of an answer."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    if body["stream"]:
        return hash_of(joined(chunks(response.text)))
    return hash_of(response.json()["choices"])


def leave(client: Any, path: str, body: dict[str, Any], parts: int) -> None:
    """Asks, reads some of a stream, and goes away."""
    body = {**body, "stream": True, "max_tokens": 100, "ignore_eos": True}
    with client.stream("POST", path, json=body) as response:
        for _, _ in zip(range(parts), response.iter_raw(), strict=False):
            pass


@pytest.fixture(scope="module")
def native(lm: LanguageModel) -> LanguageModel:
    if isinstance(make_runner(lm.model), TorchRunner):
        pytest.skip("there is no native runner here: bits depend on how prompts are chunked")
    return lm


@pytest.fixture(scope="module")
def alone(native: LanguageModel) -> list[str]:
    """Hashes of the answers, each from an engine that has answered nothing before."""
    settings = ServeSettings()
    hashes = []
    for path, body in requests():
        app = make_app(ServedModels.of({NAME: native}, settings), settings)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            hashes.append(answer(client, path, body))
    return hashes


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_answer_has_the_same_bits_in_any_company(
    native: LanguageModel,
    alone: list[str],
    start_server: Callable[..., LiveServer],
    variant: str,
) -> None:
    settings, leaving = VARIANTS[variant]
    server = start_server({"m": ModelWithEngine(native, **settings)})
    rng = random.Random(1)
    asked = requests()
    with server.client(limits=httpx.Limits(max_connections=COUNT + 12)) as client:
        engine = server.models.loaded[0].engine
        for _ in range(2):  # the second time the prefix cache has all prompts
            order = [*range(COUNT)]
            rng.shuffle(order)
            with ThreadPoolExecutor(COUNT + 12) as pool:
                with held_up(server):  # until all are there, however slowly they come
                    gone = [
                        pool.submit(leave, client, *rng.choice(asked), rng.randrange(8))
                        for _ in range(12 if leaving else 0)
                    ]
                    results = {i: pool.submit(answer, client, *asked[i]) for i in order}
                    until(lambda: engine.num_waiting >= COUNT)
                assert [results[i].result() for i in range(COUNT)] == alone
                for left in gone:
                    left.result()
        # One after the other: full steps have no room for draft tokens.
        greedy = [i for i in range(COUNT) if not asked[i][1]["temperature"]]
        assert [answer(client, *asked[i]) for i in greedy] == [alone[i] for i in greedy]
    stats = engine.stats()
    assert stats.cached_tokens > 0
    assert bool(stats.preemptions) == ("cache_tokens" in settings)
    assert bool(stats.accepted_tokens) == ("drafts" in settings)
