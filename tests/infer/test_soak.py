"""Many steps of the engine leave nothing behind, and the last answers are those of the first."""

import random

import psutil
import pytest
from constraints import alone, with_every_setting

from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.core.speculative import NgramDrafter, Speculation
from gemmule.infer.driver import Engine
from gemmule.infer.language_model import LanguageModel
from gemmule.infer.runners.choose import make_runner

REQUESTS = 10_000  # some 150,000 tokens
DIFFERENT = 500
ALIVE = 24
SETTLED = 2_000


def different_requests(rng: random.Random, stops: tuple[int, ...]) -> list[Request]:
    made = []
    for seed in range(DIFFERENT):
        prompt = [rng.randrange(540) for _ in range(rng.randint(1, 60))]
        params = SamplingParams(
            max_new_tokens=rng.randint(1, 20), temperature=rng.choice([0.0, 1.0]), seed=seed,
            logprobs=rng.choice([None, 3]),
        )  # fmt: skip
        request = Request(prompt, params)
        made.append(request if seed % 2 else with_every_setting(rng, request, 540, stops))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("drafting", [False, True])
def test_memory_does_not_grow_and_answers_stay(lm: LanguageModel, drafting: bool) -> None:
    rng, process = random.Random(0), psutil.Process()
    speculation = Speculation(NgramDrafter(), always=True) if drafting else None
    engine = Engine(
        make_runner(lm.model), lm.tokenizer, cache_tokens=600, speculation=speculation
    )  # fmt: skip
    different = different_requests(rng, lm.tokenizer.stop_ids)
    expected: list[list[Completion]] = [
        [engine.complete([sample])[0] for sample in alone(request)] for request in different
    ]
    alive: dict[int, int] = {}
    settled = cancelled = 0
    for made in range(REQUESTS):
        number = rng.randrange(DIFFERENT)
        alive[engine.submit(different[number])] = number
        if rng.random() < 0.1:
            engine.cancel(rng.choice([*alive]))
        while len(alive) >= ALIVE:
            for output in engine.step():
                if output.completion is None:
                    continue
                if output.completion.finish_reason == "cancelled":
                    cancelled += 1
                else:
                    right = expected[alive[output.request_id]][output.sample]
                    assert output.completion == right
                if output.finished:
                    del alive[output.request_id]
        if made == SETTLED:
            settled = process.memory_info().rss
    while engine.busy:
        engine.step()
    assert engine.stats().pool.allocated == 0
    assert cancelled > REQUESTS / 20
    assert process.memory_info().rss < settled + 16 * 2**20
