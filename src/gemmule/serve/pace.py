"""How fast an answer is being made, for clients that ask to be told with each of its parts."""

import time

from gemmule.serve.events import timings_so_far
from gemmule.serve.generation import Generation


class Pace:
    """Times of an answer while it is made."""

    def __init__(self, generation: Generation) -> None:
        """Starts the clock."""
        self._generation = generation
        self._began = time.monotonic()

    def timings(self, sample: int) -> dict[str, float]:
        """The times when a part of a sample has come, by the clock that its completion goes by."""
        now, usage = time.monotonic(), self._generation.usage()
        times = self._generation.first_tokens.get(sample)
        if times is None or times.scheduled is None or times.first_token is None:
            return timings_so_far(usage, now - self._began, 0.0)  # a part of the prompt
        prompt_seconds = times.first_token - times.scheduled
        return timings_so_far(usage, prompt_seconds, now - times.first_token)
