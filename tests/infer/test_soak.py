"""Many steps of the engine leave nothing behind."""

import random

import psutil
import pytest

from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner

REQUESTS = 30_000  # some 300,000 tokens: hours of one reader's
ALIVE = 24
SETTLED = 3_000


@pytest.mark.slow
def test_memory_does_not_grow(lm: LanguageModel) -> None:
    rng, process = random.Random(0), psutil.Process()
    engine = Engine(make_runner(lm.model), lm.tokenizer, cache_tokens=600)
    alive: list[int] = []
    settled = 0
    for made in range(REQUESTS):
        prompt = [rng.randrange(540) for _ in range(rng.randint(1, 60))]
        params = SamplingParams(
            max_new_tokens=rng.randint(1, 20), temperature=rng.choice([0.0, 1.0]), seed=made,
            logprobs=rng.choice([None, 3]),
        )  # fmt: skip
        alive.append(engine.submit(Request(prompt, params)))
        if rng.random() < 0.1:
            engine.cancel(alive.pop(rng.randrange(len(alive))))
        while len(alive) >= ALIVE:
            ended = {output.request_id for output in engine.step() if output.completion is not None}
            alive = [number for number in alive if number not in ended]
        if made == SETTLED:
            settled = process.memory_info().rss
    while engine.busy:
        engine.step()
    assert process.memory_info().rss < settled + 16 * 2**20
