"""Draws passages of a corpus uniformly from all positions where one fits, without replacement."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from gemmule.data.dataset import Split
from gemmule.evals.training_data import Reading

_AT_ONCE = 2**22  # positions considered together: bounds memory for a corpus of any size


@dataclasses.dataclass(frozen=True)
class Probes:
    """Passages of one split, ordered by position.

    Attributes:
        split: the split they are from.
        length: tokens of each passage.
        documents: document number of each passage, shape [probes].
        positions: position of its first token in the document, counted from the one after <bos>.
        starts: position of the same token in the split.
        places: number of positions in the split where a passage fits into a document.
        allowed: number of these positions that could be drawn.
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

    def tokens(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Token ids of the passages, shape [rows, length]."""
        passages = [self.split.read(s, s + self.length) for s in self.starts[rows].tolist()]
        return np.stack(passages)

    @property
    def digest(self) -> str:
        """SHA-256 of the positions: equal only for the same passages."""
        return hashlib.sha256(self.starts.astype("<i8").tobytes()).hexdigest()


def draw(
    split: Split,
    count: int,
    length: int,
    seed: int,
    readings: Sequence[Reading] = (),
    leave_out: range = range(0),
) -> Probes:
    """Draws passages without replacement, every position with the same probability.

    A passage has text only, neither <bos> nor <eos>, and is within one document.

    Args:
        split: split to draw from.
        count: number of passages; all if there are fewer.
        length: tokens of each passage.
        seed: seed of the draw.
        readings: only passages that each of these training runs read whole are drawn.
        leave_out: documents that are not drawn from.
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
    """The positions where a passage may start, in order, in chunks."""
    ends = np.cumsum(room)  # running total of the positions in each document
    total = int(ends[-1]) if len(ends) else 0
    for first in range(0, total, _AT_ONCE):
        places = np.arange(first, min(first + _AT_ONCE, total))
        documents = np.searchsorted(ends, places, side="right")
        starts = bounds[documents] + 1 + places - (ends - room)[documents]
        for reading in readings:
            starts = starts[reading.of_spans(starts, length) > 0]
        yield starts
