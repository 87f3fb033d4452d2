"""Edit distances of many token sequences that grow one token at a time.

Shapes: B rows, G tokens of a gold continuation.
"""

import numpy as np
import numpy.typing as npt


class EditDistances:
    """Levenshtein distance between each row's output so far and its gold continuation.

    Only the newest line of the usual table is kept: entry j is the distance to the first j tokens
    of the gold continuation. A line is computed from the previous one for all rows together;
    insertions, which propagate along the line, are a running minimum.

    Args:
        gold_BG: the gold continuations.
    """

    def __init__(self, gold_BG: npt.NDArray[np.int64]) -> None:
        self._gold_BG = gold_BG
        self._place = np.arange(gold_BG.shape[1] + 1)
        self._line = np.tile(self._place, (len(gold_BG), 1))

    def push(self, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> None:
        """Adds the next token of each of `rows`."""
        before = self._line[rows]
        changed = before[:, :-1] + (self._gold_BG[rows] != tokens[:, None])
        line = before + 1  # the new token is an insertion
        np.minimum(line[:, 1:], changed, out=line[:, 1:])
        line = np.minimum.accumulate(line - self._place, axis=1) + self._place
        self._line[rows] = line

    @property
    def distances(self) -> npt.NDArray[np.int64]:
        """Distance of each row's output so far to its whole gold continuation, shape [B]."""
        return self._line[:, -1]

    def lower_bound(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Lower bound of the final distance of each of `rows`, whatever tokens follow.

        An alignment of the final output extends an alignment of the output so far with a prefix of
        the gold continuation, and can only add edits to it.
        """
        return self._line[rows].min(axis=1)
