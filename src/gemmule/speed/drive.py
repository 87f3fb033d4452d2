"""Times an engine on random prompts, so that no page is found in the prefix cache."""

import random
import time

from gemmule.infer.core.request import Request
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.driver import Engine
from gemmule.infer.runners.protocol import Runner


class Driver:
    """Times prompts and steps of greedy decoding, sampling and bookkeeping included.

    Args:
        runner: the runner to time; it gets a pool of pages.
        seed: seed of the prompts.
        cache_tokens: size of the pool in tokens; None: the engine's default.
    """

    def __init__(self, runner: Runner, seed: int = 0, cache_tokens: int | None = None) -> None:
        # Without a tokenizer no token ends an answer.
        self.engine = Engine(runner, cache_tokens=cache_tokens)
        self._vocab_size = runner.config.vocab_size
        self._step_tokens = runner.max_step_tokens
        self._random = random.Random(seed)
        self._open: list[int] = []

    def prefill(self, tokens: int) -> float:
        """Seconds from a prompt of `tokens` tokens to the first token of its answer."""
        (number,) = self._submit(1, tokens, 1)
        began = time.perf_counter()
        while not any(event.request_id == number for event in self.engine.step()):
            pass
        seconds = time.perf_counter() - began
        self.finish()
        return seconds

    def begin(self, sequences: int, context: int, steps: int) -> None:
        """Prefills prompts of `context` tokens, whose answers may then take `steps` steps."""
        parts = -(-sequences * context // self._step_tokens) + 1
        waiting = set(self._submit(sequences, context, steps + parts))
        while waiting:
            waiting -= {event.request_id for event in self.engine.step()}

    def steps(self, count: int) -> list[float]:
        """Seconds of each of the next steps, which make one token for every sequence."""
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            events = self.engine.step()
            seconds.append(time.perf_counter() - began)
            assert len(events) == len(self._open), "a step without one of the sequences"
        return seconds

    def finish(self) -> None:
        """Ends all sequences."""
        for number in self._open:
            self.engine.cancel(number)
        while self.engine.busy:
            self.engine.step()
        self.engine.step()  # their last outputs
        self._open = []

    def decode(self, sequences: int, context: int, steps: int) -> list[float]:
        """`begin`, `steps` and `finish`."""
        self.begin(sequences, context, steps)
        try:
            return self.steps(steps)
        finally:
            self.finish()

    def _submit(self, sequences: int, context: int, answer: int) -> list[int]:
        params = SamplingParams(temperature=0.0, max_new_tokens=answer)
        for _ in range(sequences):
            prompt = self._random.choices(range(self._vocab_size), k=context)
            self._open.append(self.engine.submit(Request(prompt, params)))
        return self._open
