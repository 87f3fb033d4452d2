"""What the classifier sees of a document: which words, and pairs of words, are in it.

A word is a run of letters and digits in lower case. Words and pairs are hashed to buckets, as in
fastText (arXiv 1607.01759), and each bucket counts once, weighted so that a document's features
have length 1.

Shapes: D documents, K features of all of them.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from gemmule.data.word_hashes import JoinedTexts, encoded, groups, normalize, spaced

GRAMS = (1, 2)


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of some documents.

    Attributes:
        buckets_K: buckets, ascending in each document, one document after another.
        starts_D: where each document's begin.
        counts_D: number of each document's features.
    """

    buckets_K: npt.NDArray[np.int32]
    starts_D: npt.NDArray[np.int64]
    counts_D: npt.NDArray[np.int64]

    def sums(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Sum [D] over each document's features of the bucket's weight, times their length."""
        if not len(self.buckets_K):
            return np.zeros(len(self.counts_D))
        # A document without features would get the first feature of the next one.
        padded = np.append(weights[self.buckets_K], 0.0)
        sums = np.add.reduceat(padded, self.starts_D)
        return np.where(self.counts_D, sums * self.lengths_D, 0.0)

    def spread(self, values_D: npt.NDArray[np.float64], buckets: int) -> npt.NDArray[np.float64]:
        """Adds each document's value to its buckets, times the features' length."""
        each = np.repeat(values_D * self.lengths_D, self.counts_D)
        return np.bincount(self.buckets_K, weights=each, minlength=buckets).astype(np.float64)

    @property
    def lengths_D(self) -> npt.NDArray[np.float64]:
        """The value of each feature of a document."""
        return 1 / np.sqrt(np.maximum(self.counts_D, 1))


def features(texts: Sequence[str], bits: int) -> Features:
    """The features of texts, in 2^bits buckets."""
    normalized = (normalize(encoded(spaced(text))) for text in texts)
    return joined([features_of_group(group, bits) for _, group in groups(normalized)])


def features_of_group(texts: Sequence[bytes], bits: int) -> Features:
    """The features of normalized texts, hashed at once."""
    whole = JoinedTexts(texts)
    keys = []
    for n in GRAMS:
        hashes, documents, _ = whole.whole_grams(n)
        buckets = (hashes >> np.uint64(64 - bits)).astype(np.int64)
        keys.append(documents.astype(np.int64) << bits | buckets)
    keys_K = np.sort(np.concatenate(keys))  # np.unique hashes, which takes five times as long
    keys_K = keys_K[np.diff(keys_K, prepend=-1) != 0]
    counts_D = np.bincount(keys_K >> bits, minlength=len(texts))
    buckets_K = (keys_K & (2**bits - 1)).astype(np.int32)
    return Features(buckets_K, np.cumsum(counts_D) - counts_D, counts_D)


def joined(parts: Iterable[Features]) -> Features:
    """The features of one document after another."""
    parts = list(parts)
    counts_D = np.concatenate([np.empty(0, np.int64), *(part.counts_D for part in parts)])
    buckets_K = np.concatenate([np.empty(0, np.int32), *(part.buckets_K for part in parts)])
    return Features(buckets_K, np.cumsum(counts_D) - counts_D, counts_D)
