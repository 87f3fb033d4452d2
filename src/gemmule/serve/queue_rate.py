"""How fast requests end, measured, so that a client that is refused is told when to come back."""

import math
import time
from collections import deque
from collections.abc import Callable, Set

from gemmule.infer.step_loop import StepReport

_WINDOW = 60.0  # seconds that are looked back at
_SHORTEST, _LONGEST = 1, 300  # seconds that a client is told to wait
_UNKNOWN = 5  # seconds, while nothing has been measured


class QueueRate:
    """Counts the requests that leave the engine's steps; observes steps in the engine's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: Set[int] = frozenset()
        self._ended: deque[tuple[float, int]] = deque()  # times, and how many then

    def observe(self, report: StepReport) -> None:
        """Takes the report of a step."""
        if not report.tokens:  # outputs without a step
            return
        running = report.tokens.keys()
        ended = len(self._running - running)
        self._running = running
        if ended:
            self._ended.append((self._clock(), ended))
            while self._ended and self._ended[0][0] < self._clock() - _WINDOW:
                self._ended.popleft()

    def retry_after(self, waiting: int) -> int:
        """Seconds until as many requests as wait now have ended, by the last minute's rate."""
        now = self._clock()
        recent = [(when, n) for when, n in tuple(self._ended) if when >= now - _WINDOW]
        if not recent:
            return _UNKNOWN
        seconds = max(now - recent[0][0], 1.0)
        wait = waiting * seconds / sum(n for _, n in recent)
        return min(_LONGEST, max(_SHORTEST, math.ceil(wait)))
