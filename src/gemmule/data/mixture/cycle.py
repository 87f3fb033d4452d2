"""A fair order of several sources, repeated: at every position each has its share, within one.

Proportionate progress (Baruah, Cohen, Plaxton and Varvel, 1996): of D slots with c_s for source s,
the j-th slot of a source has to lie in [floor((j - 1) D / c_s), ceil(j D / c_s)). Filling the slots
in order with the released item of the earliest deadline keeps all of them there, so that source s
has floor(n c_s / D) or ceil(n c_s / D) of the first n slots, for every n.
"""

import dataclasses
import functools
import heapq
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemmule.data.mixture.settings import exact
from gemmule.errors import ConfigError

LONGEST = 100_000  # slots of a cycle


@dataclasses.dataclass(frozen=True, eq=False)
class Cycle:
    """D slots, repeated without end.

    Attributes:
        counts: slots of each source, shape [sources].
        sources: source of each slot, shape [D].
        ranks: how many earlier slots of the cycle belong to the slot's source, shape [D].
    """

    counts: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sources)

    def before(self, n: int) -> npt.NDArray[np.int64]:
        """How many of the first n slots each source has, shape [sources]."""
        whole, rest = divmod(n, len(self))
        return whole * self.counts + np.bincount(
            self.sources[:rest], minlength=len(self.counts)
        ).astype(np.int64)

    def at(
        self, slots: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The source of each slot, and how many earlier slots are that source's."""
        whole, rest = np.divmod(slots, len(self))
        sources = self.sources[rest]
        return sources, whole * self.counts[sources] + self.ranks[rest]

    def end_of(self, source: int, count: int) -> int:
        """The number of slots up to and including the `count`-th of a source, from 1."""
        whole, rest = divmod(count - 1, int(self.counts[source]))
        return whole * len(self) + int(np.flatnonzero(self.sources == source)[rest]) + 1


def cycle_of(weights: Sequence[float]) -> Cycle:
    """The shortest cycle that has exactly these weights, as they are written.

    Raises:
        ConfigError: when it is longer than `LONGEST`.
    """
    fractions = [exact(weight) for weight in weights]
    unit = math.lcm(*(f.denominator for f in fractions))
    counts = [int(f * unit) for f in fractions]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    if sum(counts) > LONGEST:
        shown = ", ".join(f"{weight:g}" for weight in weights)
        total = f"{sum(counts):,}" if sum(counts) < 10**9 else "more than a billion"
        raise ConfigError(
            f"the weights {shown} repeat only after {total} windows: round them, to "
            "percent or to three digits"
        )
    return _filled(tuple(counts))


@functools.lru_cache(64)
def _filled(counts: tuple[int, ...]) -> Cycle:
    length = sum(counts)
    waiting = [(0, source, 1) for source, count in enumerate(counts) if count]  # release, item
    ready: list[tuple[int, int, int]] = []  # deadline, source, number of the item from 1
    sources, ranks = np.empty(length, np.int64), np.empty(length, np.int64)
    heapq.heapify(waiting)
    for slot in range(length):
        while waiting and waiting[0][0] <= slot:
            _, source, item = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-item * length // counts[source]), source, item))
        deadline, source, item = heapq.heappop(ready)
        assert deadline > slot
        sources[slot], ranks[slot] = source, item - 1
        if item < counts[source]:
            heapq.heappush(waiting, (item * length // counts[source], source, item + 1))
    return Cycle(np.array(counts, np.int64), sources, ranks)
