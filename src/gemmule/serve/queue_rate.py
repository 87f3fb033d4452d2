"""How fast samples end, measured, so that a client that is refused is told when to come back."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable

from gemmule.infer.core.request import RequestOutput

_WINDOW = 60.0  # seconds that are looked back at
_SHORTEST, _LONGEST = 1, 300  # seconds that a client is told to wait
_UNKNOWN = 5  # seconds, while nothing has been measured


class QueueRate:
    """Counts the samples that have run and ended; observes steps in the engine's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: deque[tuple[float, int]] = deque()  # times, and how many then

    def observe(self, outputs: Iterable[RequestOutput]) -> None:
        """Takes the outputs of a step."""
        completions = [output.completion for output in outputs if output.completion is not None]
        # Whose client left while they waited say nothing of how long one waits.
        ended = sum(completion.times.scheduled is not None for completion in completions)
        if ended:
            self._ended.append((self._clock(), ended))
            while self._ended and self._ended[0][0] < self._clock() - _WINDOW:
                self._ended.popleft()

    def retry_after(self, waiting: int) -> int:
        """Seconds until as many samples as wait now have ended, by the last minute's rate."""
        now = self._clock()
        recent = [(when, n) for when, n in tuple(self._ended) if when >= now - _WINDOW]
        if not recent:
            return _UNKNOWN
        seconds = max(now - recent[0][0], 1.0)
        wait = waiting * seconds / sum(n for _, n in recent)
        return min(_LONGEST, max(_SHORTEST, math.ceil(wait)))
