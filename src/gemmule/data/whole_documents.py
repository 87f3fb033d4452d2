"""Rows of whole documents: of data whose documents may not be cut, such as conversations.

Documents are packed by best fit, the longest first (Johnson, 1973): each goes into the row with the
least space that is enough. A document of n tokens takes n - 1 positions, as its last token is only
a label.
"""

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from gemmule.data.batch import Batch
from gemmule.data.dataset import Split
from gemmule.losses.labels import IGNORED


@dataclasses.dataclass(frozen=True)
class Packing:
    """The rows of a split.

    Attributes:
        rows: indices of the documents in each row; the order of rows is random, but always the
            same.
        bounds: start of each document in the split, and the end of the last one.
        left_out: indices of documents that are longer than a row.
        filled: fraction of the rows' positions that hold a document.
    """

    rows: tuple[tuple[int, ...], ...]
    bounds: npt.NDArray[np.int64]
    left_out: tuple[int, ...]
    filled: float

    def summary(self) -> dict[str, int | float]:
        """What a manifest says."""
        return {
            "rows": len(self.rows),
            "left_out": len(self.left_out),
            "filled": round(self.filled, 4),
        }


@functools.lru_cache(16)
def pack(split: Split, seq_len: int) -> Packing:
    """The packing of a split into rows of seq_len tokens; it depends on nothing else."""
    bounds = np.append(split.document_starts(), split.token_count)
    sizes = np.diff(bounds) - 1
    fits = np.flatnonzero((sizes <= seq_len) & (sizes > 0))
    rows = [fits[row] for row in best_fit(sizes[fits].tolist(), seq_len)]
    order = np.random.default_rng(0).permutation(len(rows))
    return Packing(
        tuple(tuple(rows[n].tolist()) for n in order),
        bounds,
        tuple(np.flatnonzero(sizes > seq_len).tolist()),
        float(sizes[fits].sum()) / max(1, len(rows) * seq_len),
    )


def best_fit(sizes: Sequence[int], space: int) -> list[list[int]]:
    """Packs items into rows by best-fit-decreasing.

    Args:
        sizes: size of each item, from 1 to `space`.
        space: size of a row.

    Returns:
        The indices of the items in each row.
    """
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # rows that have this much space left
    spaces: list[int] = []  # the keys of by_space in order
    for item in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        size = sizes[item]
        at = bisect.bisect_left(spaces, size)
        if at == len(spaces):
            rows.append([])
            row, left = len(rows) - 1, space
        else:
            left = spaces[at]
            row = by_space[left].pop()
            if not by_space[left]:
                del by_space[left], spaces[at]
        rows[row].append(item)
        left -= size
        if left:
            if left not in by_space:
                bisect.insort(spaces, left)
                by_space[left] = []
            by_space[left].append(row)
    return rows


def batch_of_rows(split: Split, indices: npt.NDArray[np.int64], seq_len: int) -> Batch:
    """The rows with the given indices, in that order; what is left of a row is padded."""
    packing = pack(split, seq_len)
    tokens = np.full((len(indices), seq_len), split.pad_id, np.int64)
    labels = np.full(tokens.shape, IGNORED, np.int64)
    doc_ids = np.zeros(tokens.shape, np.int64)
    for row, index in enumerate(indices):
        end = 0
        for number, document in enumerate(packing.rows[index], 1):
            start, stop = (int(b) for b in packing.bounds[document : document + 2])
            ids, is_label = split.read(start, stop), split.read_mask(start, stop)
            here = slice(end, end + stop - start - 1)
            tokens[row, here] = ids[:-1]
            labels[row, here] = np.where(is_label[1:], ids[1:], IGNORED)
            doc_ids[row, here] = number
            end = here.stop
    return Batch(torch.from_numpy(tokens), torch.from_numpy(labels), torch.from_numpy(doc_ids))
