"""Which documents are near-duplicates of one another: clusters of shared band keys."""

import numpy as np
import numpy.typing as npt

from gemmule.data.word_hashes import Hashes

_AT_ONCE = 2**20


def clusters(keys_DB: Hashes) -> npt.NDArray[np.int64]:
    """The cluster [D] of each document: the number of the first document that belongs to it.

    Documents that share a key of a band are in one cluster, and so are those that are connected
    through others. The clusters do not depend on the order of the documents.

    Args:
        keys_DB: band keys of D documents in B bands, as from `minhash.BandKeys`; 0: none.
    """
    cluster_of = np.arange(len(keys_DB))
    for keys_D in keys_DB.T:
        order = np.argsort(keys_D, kind="stable")
        keys = keys_D[order]
        same = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] != 0))
        join(cluster_of, np.stack([order[same], order[same + 1]], axis=1))
    resolve(cluster_of)
    return cluster_of


def join(cluster_of: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64]) -> None:
    """Puts the two documents of each pair [N, 2] into one cluster (union-find), in place.

    Args:
        cluster_of: for each document one of its cluster with a smaller number, or itself; at first
            all numbers in order.
        pairs: numbers of documents.
    """
    ends = cluster_of[pairs]
    differ = ends[:, 0] != ends[:, 1]  # most pairs were joined by an earlier band
    for a, b in ends[differ].tolist():
        first, second = _root(cluster_of, a), _root(cluster_of, b)
        cluster_of[max(first, second)] = min(first, second)


def resolve(cluster_of: npt.NDArray[np.int64]) -> None:
    """Gives each document the number of the first one in its cluster, in place."""
    # A parent comes before its children, so the blocks before are done.
    for start in range(0, len(cluster_of), _AT_ONCE):
        block = cluster_of[start : start + _AT_ONCE]
        while True:
            above = cluster_of[block]
            if np.array_equal(above, block):
                break
            block[:] = above


def _root(cluster_of: npt.NDArray[np.int64], n: int) -> int:
    while cluster_of[n] != n:
        cluster_of[n] = cluster_of[cluster_of[n]]  # halves the path
        n = int(cluster_of[n])
    return n
