"""Drawing passages of a corpus: uniformly over every place where one fits, each at most once."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gemmule.data.dataset import Split
from gemmule.evals.training_data import Reading

_AT_ONCE = 2**22  # places looked at together: bounds memory at any size of the corpus


@dataclasses.dataclass(frozen=True)
class Probes:
    """Passages of one split, ordered by place.

    Attributes:
        split: where they are.
        length: tokens of each.
        documents: of each the document's number, shape [probes].
        positions: its first token's place in the document, counted from the one after <bos>.
        starts: the same token's place in the split.
        places: where a passage fits into a document.
        allowed: how many of these could be drawn.
    """

    split: Split
    length: int
    documents: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    places: int
    allowed: int

    def __len__(self) -> int:
        return len(self.starts)

    def tokens(self, rows: slice) -> npt.NDArray[np.int64]:
        """The passages' ids, shape [rows, length]."""
        passages = [self.split.read(s, s + self.length) for s in self.starts[rows].tolist()]
        return np.stack(passages)

    @property
    def digest(self) -> str:
        """SHA-256 of the places: equal only for the same passages."""
        return hashlib.sha256(self.starts.astype("<i8").tobytes()).hexdigest()


def draw(
    split: Split,
    count: int,
    length: int,
    seed: int,
    readings: Sequence[Reading] = (),
    leave_out: range = range(0),
) -> Probes:
    """Draws passages without replacement, each place as likely as any other.

    A passage holds text only, neither <bos> nor <eos>, and lies in one document.

    Args:
        split: to draw from.
        count: how many; all there are where there are fewer.
        length: tokens of each.
        seed: decides which.
        readings: only passages that each of these trainings read whole.
        leave_out: documents not to draw from.
    """
    bounds = np.append(split.document_starts(), split.token_count)
    room = np.maximum(0, np.diff(bounds) - 2 - length + 1)
    room[list(leave_out)] = 0
    sizes = [len(starts) for starts in _allowed(bounds, room, length, readings)]
    allowed = sum(sizes)
    ranks = np.arange(allowed)
    if count < allowed:
        ranks = np.sort(np.random.default_rng(seed).choice(allowed, count, replace=False))
    chosen = []
    before = 0
    for starts in _allowed(bounds, room, length, readings):
        low, high = np.searchsorted(ranks, (before, before + len(starts)))
        chosen.append(starts[ranks[low:high] - before])
        before += len(starts)
    starts = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    documents = np.searchsorted(bounds, starts, side="right") - 1
    positions = starts - bounds[documents] - 1
    return Probes(split, length, documents, positions, starts, int(room.sum()), allowed)


def _allowed(
    bounds: npt.NDArray[np.int64],
    room: npt.NDArray[np.int64],
    length: int,
    readings: Sequence[Reading],
) -> Iterator[npt.NDArray[np.int64]]:
    """The places where a passage may start, in order, some at a time."""
    ends = np.cumsum(room)  # of the places of each document, counted over all
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _AT_ONCE):
        places = np.arange(first, min(first + _AT_ONCE, total))
        documents = np.searchsorted(ends, places, side="right")
        starts = bounds[documents] + 1 + places - (ends - room)[documents]
        for reading in readings:
            starts = starts[reading.of_spans(starts, length) > 0]
        yield starts
