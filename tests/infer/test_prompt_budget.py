"""Prompts that arrive among decoding requests: what they may add to a step, and who comes first."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fake_runner import WINDOW, FakeRunner, FakeTokenizer, expected
from test_engine import requests, without_log_probs

from gemmule.errors import ConfigError
from gemmule.infer.async_driver import AsyncEngine
from gemmule.infer.core.engine_core import EngineCore
from gemmule.infer.core.pages import max_pages
from gemmule.infer.core.prompt_budget import PromptBudget
from gemmule.infer.core.request import Completion, Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.runners.protocol import ScheduledChunk

TOKENIZER: Any = FakeTokenizer()
MOST = 512  # tokens in a step
CONTEXT = 6000


class Machine:
    """A machine whose steps take a known time, and an engine on it.

    Attributes:
        steps: tokens that each request ran in each step, and the step's seconds.
    """

    def __init__(
        self, step_seconds: float, token_seconds: float, max_delay: float | None, **settings: Any
    ) -> None:
        self.step_seconds, self.token_seconds = step_seconds, token_seconds
        self.now = 0.0
        self.noise: Iterator[float] = iter(lambda: 1.0, None)
        self.runner = FakeRunner(MOST, CONTEXT)
        self.core = EngineCore(
            self.runner,
            800,
            TOKENIZER,
            prompt_budget=None if max_delay is None else PromptBudget(max_delay),
            clock=lambda: self.now,
            **settings,
        )
        self.runner.allocate(800)
        self.steps: list[tuple[dict[int, int], float]] = []
        self.done: dict[int, Completion] = {}

    def submit(self, request: Request) -> int:
        states = self.core.generation(request)
        self.core.add(states)
        return states[0].request_id

    def step(self) -> dict[int, int]:
        chunks = self.core.plan()
        seconds = self.seconds(chunks)
        outputs = self.runner.step(chunks)
        self.now += seconds
        tokens = self.core.tokens_of_requests(chunks)
        for output in self.core.apply(chunks, outputs):
            if output.completion is not None:
                self.done[output.request_id] = output.completion
        self.steps.append((tokens, seconds))
        return tokens

    def seconds(self, chunks: Sequence[ScheduledChunk]) -> float:
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        return (self.step_seconds + self.token_seconds * tokens) * next(self.noise)

    def run(self) -> None:
        while self.core.num_requests:
            self.step()


def stream(seed: int, tokens: int = 400) -> Request:
    """A request that decodes for long."""
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, temperature=1.0, seed=seed)
    return Request([3 + seed % 20] * 5, params)


def prompt_of(length: int, seed: int = 0) -> Request:
    rng = random.Random(seed)
    ids = [rng.randrange(2, 27) for _ in range(length)]
    return Request(ids, SamplingParams(max_new_tokens=3, temperature=0.0, ignore_eos=True))


# A 2B in int4 on two cores, a student, and a machine that is too slow for the limit.
MACHINES = {"2b": (0.05, 0.006), "student": (0.0005, 0.00002), "slow": (2.0, 0.1)}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("noisy", [False, True])
def test_a_long_prompt_delays_no_token_by_more_than_the_limit(name: str, noisy: bool) -> None:
    base, per_token = MACHINES[name]
    machine = Machine(base, per_token, max_delay=0.1)
    if noisy:
        rng = random.Random(1)
        machine.noise = iter(lambda: rng.uniform(0.95, 1.05), None)
    for seed in range(8):
        machine.submit(stream(seed, 700))
    for _ in range(20):
        machine.step()
    long = machine.submit(prompt_of(4000))
    before = len(machine.steps)
    while machine.core.num_requests > 8:
        machine.step()
    alone = base + 8 * per_token
    chunks = [tokens.get(long, 0) for tokens, _ in machine.steps[before:]]
    delays = [seconds - alone for _, seconds in machine.steps[before:]]
    if name == "slow":
        assert max(chunks) == 16  # the first one; then the fewest there may be
        assert sorted({*chunks[1:-3]}) == [0, 8]
    else:
        assert max(delays) < (0.15 if noisy else 0.1001)
        # The limit is made use of.
        assert len(chunks) < 1.2 * (4000 / (0.1 / per_token)) + 60
    if name == "student":
        assert max(chunks) == MOST - 8
    for tokens, _ in machine.steps[before:-1]:
        assert len(tokens) >= 8, "a stream had to wait"


def test_alone_a_prompt_fills_the_steps() -> None:
    limited, free = (Machine(0.05, 0.006, delay) for delay in (0.1, None))
    for machine in (limited, free):
        machine.submit(prompt_of(4000))
        machine.submit(prompt_of(900, seed=1))
        machine.run()
    assert [*limited.steps[0][0].values()] == [MOST]
    # At most one more step: the first one's last tokens decode while the second one's prompt runs.
    assert limited.now < 1.05 * free.now


def test_answers_are_those_without_a_limit() -> None:
    asked = requests(random.Random(3), 200)
    machine = Machine(0.05, 0.006, 0.04, max_running=6)
    rng = random.Random(5)
    machine.noise = iter(lambda: rng.choice([0.5, 1.0, 1.0, 9.0]), None)
    numbers = {}
    for request in asked:
        numbers[machine.submit(request)] = request
        if rng.random() < 0.8:
            machine.step()
        assert len(machine.steps[-1][0] if machine.steps else {}) <= 6
    machine.run()
    for number, request in numbers.items():
        assert without_log_probs(machine.done[number]) == expected(request, CONTEXT)


def test_waiting_requests_run_in_order_of_arrival() -> None:
    machine = Machine(0.05, 0.006, 0.1, max_running=4)
    for seed in range(2):
        machine.submit(stream(seed))
    for _ in range(3):
        machine.step()
    lengths = [300, 5, 80, 40, 5, 200]
    waiting = [machine.submit(prompt_of(n, seed=n)) for n in lengths]
    begun: list[int] = []
    while machine.core.num_requests > 2:
        begun += [number for number in machine.step() if number in waiting and number not in begun]
        assert machine.core.stats().running <= 4
    assert begun == waiting


def test_the_limit_holds_however_the_number_of_streams_changes() -> None:
    machine = Machine(0.05, 0.006, 0.1)
    rng = random.Random(2)
    for seed in range(60):
        machine.submit(stream(seed, rng.randint(3, 90)))
        if rng.random() < 0.4:
            machine.submit(prompt_of(rng.randint(50, 600), seed))
        for _ in range(rng.randint(0, 8)):
            machine.step()
    machine.run()
    late = 0
    for tokens, seconds in machine.steps[20:]:
        decoding = sum(count == 1 for count in tokens.values())
        if decoding:
            late += seconds - (0.05 + 0.006 * decoding) > 0.15
    assert late == 0


def test_the_engine_with_a_thread_keeps_a_limit() -> None:
    for setting in ({"max_running": 0}, {"max_prompt_delay": 0.0}, {"max_waiting": -1}):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            AsyncEngine(FakeRunner(), TOKENIZER, cache_tokens=320, **setting)
    running: list[int] = []
    request = stream(1, 20)
    with AsyncEngine(
        FakeRunner(), TOKENIZER, cache_tokens=4000, max_running=3,
        after_step=lambda report: running.append(len(report.tokens)),
    ) as engine:  # fmt: skip
        for _ in range(9):
            engine.submit(request, lambda output: None)
    assert max(running) == 3


@pytest.mark.parametrize("positions", [33, 40, 64, 65, 97, 130, 155])
@pytest.mark.parametrize("step", [1, 7, 32, 48])
def test_prompts_get_on_where_memory_is_just_enough(positions: int, step: int) -> None:
    """With local pages that are freed while the prompt goes on, and others that wait for them."""
    runner = FakeRunner(step, 160)
    pages = max_pages(positions, WINDOW)
    core = EngineCore(runner, pages, TOKENIZER, prompt_budget=PromptBudget(0.1))
    runner.allocate(pages)
    params = SamplingParams(max_new_tokens=4, temperature=0.0, ignore_eos=True)
    for seed in range(4):
        prompt = [3 + (seed + i) % 20 for i in range(positions - 3)]
        core.add(core.generation(Request(prompt, params)))
    steps = 0
    while core.num_requests:
        chunks = core.plan()
        core.apply(chunks, runner.step(chunks))
        steps += 1
        assert steps < 4 * (positions + 4) * 4, "the same chunk again and again"
    assert core.stats().pool.allocated == 0
