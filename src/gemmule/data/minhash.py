"""MinHash: short keys of a document, which near-duplicates are likely to share.

The shingles of a document are its runs of 5 words. Two documents whose sets of shingles have the
Jaccard similarity s share a minimum of a random hash with probability s. There are 112 hashes in
14 bands of 8, as in FineWeb (arXiv 2406.17557), and two documents that agree in a whole band count
as near-duplicates: this happens with probability 1 - (1 - s^8)^14, which is 0.05 at s = 0.5, 0.56
at 0.7, 0.92 at 0.8 and 1.00 at 0.9.

The hashes are not computed one by one. A single hash of each shingle chooses one of 112 bins, and
the smallest value of a bin is its minimum (one permutation hashing, arXiv 1208.1259). An empty bin
takes the minimum of another one, by random choices that are the same for all documents (optimal
densification, arXiv 1703.04664), so that the probability of agreeing stays s.

Shapes: D documents, H hashes, B bands.
"""

import numpy as np
import numpy.typing as npt

from gemmule.data.word_hashes import (
    BYTES_AT_ONCE,
    Hashes,
    JoinedTexts,
    encoded,
    mixed,
    normalize,
    spaced,
)

SHINGLE = 5
BANDS, ROWS = 14, 8
HASHES = BANDS * ROWS

_EMPTY = np.uint64(2**64 - 1)


class BandKeys:
    """Takes documents one by one, and has the keys of all of them in the end."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._size = 0
        self._parts = [np.empty((0, BANDS), np.uint64)]

    def add(self, text: str) -> None:
        """Takes the next document."""
        self._waiting.append(normalize(encoded(spaced(text))))
        self._size += len(self._waiting[-1])
        if self._size >= BYTES_AT_ONCE:
            self._compute()

    def keys(self) -> Hashes:
        """The keys [D, B]: two documents with the same one in the same band are candidates.

        A document of fewer than 5 words is a near-duplicate of none, and its keys are 0.
        """
        self._compute()
        self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    def _compute(self) -> None:
        if self._waiting:
            self._parts.append(keys_of(minima(JoinedTexts(self._waiting))))
            self._waiting, self._size = [], 0


def minima(texts: JoinedTexts) -> Hashes:
    """The minima [D, H] of each document; in a row without any shingle all are 2^64 - 1."""
    hashes, documents, _ = texts.whole_grams(SHINGLE)
    minima_DH = np.full((len(texts.word_counts), HASHES), _EMPTY)
    # The upper bits choose the bin, so the value is taken from bits that they do not decide.
    bins = ((hashes >> np.uint64(32)) * np.uint64(HASHES)) >> np.uint64(32)
    values = mixed(hashes + np.uint64(1)) >> np.uint64(1)
    np.minimum.at(minima_DH.reshape(-1), documents * HASHES + bins.astype(np.int64), values)
    return _densified(minima_DH)


def _densified(minima_DH: Hashes) -> Hashes:
    """Fills empty bins: each takes the minimum of the first bin of its own row of choices."""
    empty_DH = minima_DH == _EMPTY
    partly = np.flatnonzero(empty_DH.any(1) & ~empty_DH.all(1))
    if not len(partly):
        return minima_DH
    for first in range(0, len(partly), 1024):
        rows = partly[first : first + 1024]
        given, missing = minima_DH[rows], empty_DH[rows]
        row, place = np.nonzero(missing)
        attempt = 0
        while len(row):
            choice = _CHOICES[place, attempt % len(_CHOICES[0])]
            filled = ~missing[row, choice]
            # Values of different bins differ: two documents agree in a bin that both lack only if
            # they agree in the same other one.
            minima_DH[rows[row[filled]], place[filled]] = given[row[filled], choice[filled]]
            row, place = row[~filled], place[~filled]
            attempt += 1
    return minima_DH


def _choices() -> npt.NDArray[np.int64]:
    """For each bin the other bins in a random order of its own."""
    numbers = mixed(np.arange(1, HASHES * HASHES + 1, dtype=np.uint64)).reshape(HASHES, HASHES)
    return numbers.argsort(1)


_CHOICES = _choices()


def keys_of(minima_DH: Hashes) -> Hashes:
    """One key [D, B] for the minima of each band; 0 for a document without minima."""
    keys_DB = np.zeros((len(minima_DH), BANDS), np.uint64)
    for row in range(ROWS):
        keys_DB = mixed(keys_DB * np.uint64(0x9E3779B97F4A7C15) + minima_DH[:, row::ROWS])
    keys_DB[minima_DH[:, 0] == _EMPTY] = 0
    return keys_DB
