"""Edit distances of token sequences that arrive a token at a time, many side by side.

Shapes: B rows, G tokens of a gold continuation.
"""

import numpy as np
import numpy.typing as npt


class EditDistances:
    """Levenshtein's distance of what each row has put out so far to its gold continuation.

    The usual table, of which only the newest line is kept: entry j is the distance to the gold's
    first j tokens. A line follows from the one before for all rows at once; only insertions run
    along the line, and those are a running minimum.

    Args:
        gold_BG: the gold continuations.
    """

    def __init__(self, gold_BG: npt.NDArray[np.int64]) -> None:
        self._gold_BG = gold_BG
        self._place = np.arange(gold_BG.shape[1] + 1)
        self._line = np.tile(self._place, (len(gold_BG), 1))

    def push(self, rows: npt.NDArray[np.int64], tokens: npt.NDArray[np.int64]) -> None:
        """Takes the next token of each of `rows`."""
        before = self._line[rows]
        changed = before[:, :-1] + (self._gold_BG[rows] != tokens[:, None])
        line = before + 1  # the new token is one too many
        np.minimum(line[:, 1:], changed, out=line[:, 1:])
        line = np.minimum.accumulate(line - self._place, axis=1) + self._place
        self._line[rows] = line

    @property
    def distances(self) -> npt.NDArray[np.int64]:
        """Of each row, as it stands, to its whole gold continuation; shape [B]."""
        return self._line[:, -1]

    def at_least(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What the final distance of each of `rows` cannot fall below, whatever comes yet.

        An alignment of the whole begins with one of what there is now and some of the gold's first
        tokens, and only adds edits to it.
        """
        return self._line[rows].min(axis=1)
