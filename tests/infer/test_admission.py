"""Who is admitted when more requests come than can be served, in simulated time."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from fake_runner import ROWS, FakeRunner

from gemmule.infer.core.engine_core import EngineCore
from gemmule.infer.core.prompt_budget import PromptBudget
from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.runners.protocol import ScheduledChunk, StepOutput

RUNNING = 8
# Seconds of a step: of any, for each token that is decoded, for each token of a prompt.
FAST, SLOW = (1e-3, 4e-5, 4e-5), (35e-3, 7e-3, 9.5e-3)


class Simulation:
    """An engine whose steps take the time they are said to, and the requests that come to it."""

    def __init__(self, costs: Sequence[float], prompt: int, answer: int) -> None:
        self.now, self._costs, self._rng = 0.0, costs, random.Random(3)
        self._runner = FakeRunner(max_step_tokens=512, context=400)
        self._core = EngineCore(
            self._runner, 400, max_running=RUNNING, prompt_budget=PromptBudget(0.1),
            clock=lambda: self.now,
        )  # fmt: skip
        self._prompt = prompt
        self._params = SamplingParams(temperature=0.0, max_new_tokens=answer)

    def run(self, arrivals: Sequence[float], max_waiting: int) -> tuple[list[float], int]:
        """Returns the times to the first token, in order of size, and how many were refused."""
        left, arrived, came, first = [*arrivals], [], dict[int, float](), dict[int, float]()
        refused = 0

        def arrive(until: float) -> None:
            nonlocal refused
            while left and left[0] <= until:
                waiting = len(arrived) + self._core.num_waiting
                if waiting + 1 > self._core.free_places + max_waiting:
                    refused += 1
                else:
                    ids = [self._rng.randrange(3, ROWS) for _ in range(self._prompt)]
                    arrived.append(self._core.generation(Request(ids, self._params)))
                    came[arrived[-1][0].request_id] = left[0]
                left.pop(0)

        while left or arrived or self._core.num_requests:
            if not (arrived or self._core.num_requests):
                self.now = max(self.now, left[0])
                arrive(self.now)
            for states in arrived:
                self._core.add(states)
            arrived.clear()
            chunks = self._core.plan()
            tokens = [len(chunk.tokens) for chunk in chunks]
            prompts = sum(n for n in tokens if n > 1)
            step, decoded, prompt = self._costs
            end = self.now + step + decoded * (sum(tokens) - prompts) + prompt * prompts
            arrive(end)
            self.now = end
            for output in self._core.apply(chunks, [_outputs(chunk) for chunk in chunks]):
                if output.ids:
                    first.setdefault(output.request_id, self.now)
        return sorted(first[i] - came[i] for i in first), refused


def _outputs(chunk: ScheduledChunk) -> list[StepOutput]:
    largest: Any = {"top_ids": torch.tensor([5]), "top_logits": torch.zeros(1)}
    return [StepOutput(**largest) for _ in chunk.logits]


def overload(costs: Sequence[float], prompt: int, max_waiting: int) -> tuple[float, float, int]:
    """Times to the first token at half and at twice what can be served, 98% of them; refused."""
    times, count, answer = [], 240, 32
    together = Simulation(costs, prompt, answer)
    together.run([0.0] * 3 * RUNNING, max_waiting=100)
    capacity = 3 * RUNNING / together.now
    refused = 0
    for share in (0.5, 2.0):
        rng = random.Random(1)
        seconds = count / (share * capacity)
        arrivals = sorted(rng.uniform(0, seconds) for _ in range(count))
        ttft, refused = Simulation(costs, prompt, answer).run(arrivals, max_waiting)
        times.append(ttft[len(ttft) * 98 // 100])
    return times[0], times[1], refused


def test_who_need_not_wait_for_others_is_served_as_fast_under_overload() -> None:
    """Twice the requests that can be served: those that are taken start as if there were half."""
    for costs, prompt in ((FAST, 64), (SLOW, 128)):
        half, twice, refused = overload(costs, prompt, max_waiting=0)
        assert twice < 2 * half, (half, twice)
        assert 80 < refused < 160


def test_a_queue_is_what_makes_them_wait() -> None:
    half, twice, _ = overload(FAST, 64, max_waiting=4)
    assert twice > 3 * half
