"""Work that ranks share out as they go.

    work = SharedWork(world, stop)
    while (piece := work.next()) < pieces and not work.stopping:
        ...                                # looks at `work.stopping` from time to time
    work.finish()

Each piece goes to the rank that is free first, so ranks on unlike machines end at about the same
time. Nothing but `finish` waits for others, and it waits for as long as their last pieces take.
"""

import itertools
import time

from gemmule.runtime.signals import Stop
from gemmule.runtime.world import World

_POLL = 0.1  # seconds between looks at whether the others are done
_CALL_AFTER = 30.0  # seconds of waiting after which it is asked who is still there
_PATIENCE = 60.0  # seconds for the answer of a rank that is busy


class SharedWork:
    """Pieces of work, numbered from 0; each is given to one rank.

    Args:
        world: the ranks, each of which makes this object; collective.
        stop: this rank's requests to stop, which stop all of them.
    """

    def __init__(self, world: World, stop: Stop) -> None:
        self._world, self._stop, self._stopping = world, stop, False
        self._store = world.notes()  # the numbers are counted where the processes met
        self._alone = itertools.count()

    def next(self) -> int:
        """The number of a piece that no other rank has; they rise by one over all ranks.

        Raises:
            RankError: when the store is gone.
        """
        if self._store is None:
            return next(self._alone)
        try:
            return int(self._store.add("pieces", 1)) - 1
        except RuntimeError:
            self._world.check()
            raise

    @property
    def stopping(self) -> bool:
        """Whether some rank was asked to stop, or has failed."""
        if self._store is None or self._stopping:
            return self._stopping or self._stop.requested
        try:
            if self._stop.requested:
                self._store.set("stop", "")
            self._stopping = self._store.check(["stop"]) or self._world.failed
        except RuntimeError:  # the store is gone, which `finish` tells
            self._stopping = True
        return self._stopping

    def finish(self) -> None:
        """Waits until no rank works any more.

        Raises:
            RankError: when one has failed or is gone.
        """
        if self._store is None:
            return
        try:
            self._store.add("done", 1)
            asked = time.monotonic()
            while self._store.add("done", 0) < self._world.size:
                if self.stopping:
                    self._world.check()
                elif time.monotonic() - asked > _CALL_AFTER:
                    self._world.check(_PATIENCE)
                    asked = time.monotonic()
                time.sleep(_POLL)
        except RuntimeError:
            self._world.check()
            raise
