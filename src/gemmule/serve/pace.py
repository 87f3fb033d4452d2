"""How fast an answer is being made, for clients that ask to be told with each of its parts."""

import time

from gemmule.serve.events import timings_so_far
from gemmule.serve.generation import Generation


class Pace:
    """Times of an answer while it is made."""

    def __init__(self, generation: Generation) -> None:
        """Starts the clock."""
        self._generation = generation
        self._started = time.monotonic()
        self._first: float | None = None

    def timings(self) -> dict[str, float]:
        """The times when a part of the answer has come; the first call is the first part's."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        usage = self._generation.usage()
        return timings_so_far(usage, self._first - self._started, now - self._first)
