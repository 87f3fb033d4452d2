"""Which documents are near-duplicates of one another: clusters of shared band keys."""

import numpy as np
import numpy.typing as npt

from gemmule.data.word_hashes import Hashes


def clusters(keys_DB: Hashes) -> npt.NDArray[np.int64]:
    """The cluster [D] of each document: the number of the first document that belongs to it.

    Documents that share a key of a band are in one cluster, and so are those that are connected
    through others. The clusters do not depend on the order of the documents.

    Args:
        keys_DB: band keys of D documents in B bands, as from `minhash.BandKeys`; 0: none.
    """
    parent = np.arange(len(keys_DB))
    for keys_D in keys_DB.T:
        order = np.argsort(keys_D, kind="stable")
        keys = keys_D[order]
        same = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] != 0))
        for a, b in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            _join(parent, a, b)
    # A parent comes before its children, so that one pass resolves them all.
    for n in np.flatnonzero(parent != np.arange(len(parent))).tolist():
        parent[n] = parent[parent[n]]
    return parent


def _join(parent: npt.NDArray[np.int64], a: int, b: int) -> None:
    a, b = _root(parent, a), _root(parent, b)
    parent[max(a, b)] = min(a, b)


def _root(parent: npt.NDArray[np.int64], n: int) -> int:
    while parent[n] != n:
        parent[n] = parent[parent[n]]  # halves the path
        n = int(parent[n])
    return n
