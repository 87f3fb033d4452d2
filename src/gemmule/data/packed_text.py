"""Training and evaluation batches of packed documents, cut from a split's token stream.

Of data whose documents may not be cut, rows hold whole documents (whole_documents.py).

Shape letters: B sequences of a batch, T tokens of a sequence.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gemmule.data import whole_documents
from gemmule.data.batch import Batch
from gemmule.data.dataset import Split
from gemmule.errors import DataError
from gemmule.losses.labels import IGNORED

SEQUENCE_INDICES = "sequence_indices_B"  # extra of a batch: each row's index in the split, from 0


class PackedText:
    """A `Source`: an endless, seeded stream of batches over a split.

    The split's tokens are cut into sequences of seq_len + 1 tokens, each starting with the last
    token of the one before, so that every token is a label once an epoch (except up to seq_len - 1
    tokens at the end of the split). Of data whose documents may not be cut, a sequence is a row of
    whole documents. Each epoch has its own order, and epochs follow each other without a gap.

    Ranks read one stream together: of each `parts * batch_size` rows, this one yields the `part`-th
    batch_size. The position counts the rows of all, so that any number of ranks can go on from it.

    Args:
        split: tokens to read.
        batch_size: sequences per batch, B.
        seq_len: tokens per sequence, T.
        seed: seed of the order.
        sequences: number of sequences to use, counted from the start of the split; None: all.
        part: number of this reader, from 0.
        parts: how many read the stream together.

    Raises:
        DataError: when the split is shorter than one sequence.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seq_len: int,
        seed: int,
        sequences: int | None = None,
        *,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        if batch_size < 1 or seq_len < 1 or seed < 0:
            raise DataError(
                f"batch_size {batch_size} and seq_len {seq_len} must be at least 1, and seed {seed}"
                " at least 0"
            )
        self._split = split
        self._batch_size = batch_size
        self._seq_len = seq_len
        self._seed = seed
        self._part, self._parts = part, parts
        self._epoch = 0
        self._position = 0
        self._sequences = sequence_count(split, seq_len)
        if sequences is not None:
            self._sequences = min(sequences, self._sequences)
        if self._sequences < 1:
            raise DataError(too_few(split, seq_len))
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None  # of which epoch

    def next(self) -> Batch:
        """The next batch."""
        first = self._position + self._part * self._batch_size
        rows = range(first, first + self._batch_size)
        indices = np.array([self._sequence_at(row) for row in rows], np.int64)
        self._position += self._parts * self._batch_size
        further = (self._position - 1) // self._sequences  # the end of an epoch belongs to it
        self._epoch += further
        self._position -= further * self._sequences
        return batch_of(self._split, indices, self._seq_len)

    def state(self) -> dict[str, Any]:
        """The position: seed, epoch, and sequences read of that epoch by all readers."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `state` returned, for the same split and seq_len.

        Raises:
            DataError: when it cannot be a position in this split.
        """
        seed, epoch, position = (state.get(key) for key in ("seed", "epoch", "position"))
        if (
            not (isinstance(seed, int) and isinstance(epoch, int) and isinstance(position, int))
            or epoch < 0
            or not 0 <= position <= self._sequences
        ):
            raise DataError(
                f"{dict(state)} is not a position in {self._split.name}, which has "
                f"{self._sequences} sequences of {self._seq_len} tokens: resume with the data that "
                "the run was started with"
            )
        self._seed, self._epoch, self._position = seed, epoch, position
        self._order = None

    def _sequence_at(self, row: int) -> int:
        """The sequence that is read as a row of the stream, counted from the epoch's start."""
        further, row = divmod(row, self._sequences)
        epoch = self._epoch + further
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, _order(self._sequences, self._seed, epoch)
        return int(self._order[1][row])


def sequence_count(split: Split, seq_len: int) -> int:
    """Number of whole sequences of seq_len tokens in a split, each with the label of its last.

    Of data whose documents may not be cut, the number of rows that hold them.
    """
    if split.whole_documents:
        return len(whole_documents.pack(split, seq_len).rows)
    return (split.token_count - 1) // seq_len


def too_few(split: Split, seq_len: int) -> str:
    """Why a split gives no sequence of seq_len tokens."""
    if split.whole_documents:
        return (
            f"each of the {split.document_count} documents of {split.name} is longer than seq_len "
            f"{seq_len}, and none may be cut: use a longer seq_len"
        )
    return (
        f"seq_len {seq_len} is longer than the data: {split.name} has {split.token_count} tokens "
        f"and a sequence needs {seq_len + 1}; use a shorter seq_len or more text"
    )


def times_read(sequences: int, rows: int, seed: int) -> npt.NDArray[np.int64]:
    """How often a `PackedText` has read each sequence after its first `rows` rows.

    Args:
        sequences: number of sequences in an epoch.
        rows: number of sequences in all batches up to now.
        seed: seed of the order.

    Returns:
        Counts, shape [sequences].
    """
    epochs, rest = divmod(rows, sequences)
    times = np.full(sequences, epochs, np.int64)
    times[_order(sequences, seed, epochs)[:rest]] += 1
    return times


def _order(sequences: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(sequences)


def batch_of(split: Split, indices: npt.NDArray[np.int64], seq_len: int) -> Batch:
    """The sequences with the given indices, in that order.

    The last sequence of a split may be shorter than seq_len and is padded. Tokens that the split's
    loss mask excludes are inputs but not labels.
    """
    extras = {SEQUENCE_INDICES: torch.from_numpy(indices)}
    if split.whole_documents:
        batch = whole_documents.batch_of_rows(split, indices, seq_len)
        return dataclasses.replace(batch, extras=extras)
    rows = np.full((len(indices), seq_len + 1), split.pad_id, np.int64)
    is_label = np.ones(rows.shape, np.bool_)
    lengths = np.empty(len(indices), np.int64)
    for i, index in enumerate(indices):
        start = int(index) * seq_len
        part = split.read(start, start + seq_len + 1)
        rows[i, : len(part)] = part
        lengths[i] = len(part)
        if split.has_mask:
            is_label[i, : len(part)] = split.read_mask(start, start + seq_len + 1)
    tokens = rows[:, :-1]
    starts = tokens == split.bos_id
    doc_ids = np.cumsum(starts, axis=1) + ~starts[:, :1]
    # The token before a <bos> belongs to another document and cannot predict it.
    is_label &= rows != split.bos_id
    labels = np.where(is_label[:, 1:], rows[:, 1:], IGNORED)
    position = np.arange(tokens.shape[1])
    last = lengths[:, None] - 1
    labels[position >= last] = IGNORED
    doc_ids[position > last] = 0
    return Batch(
        torch.from_numpy(np.ascontiguousarray(tokens)),
        torch.from_numpy(labels),
        torch.from_numpy(doc_ids),
        extras=extras,
    )


def eval_batches(
    split: Split,
    batch_size: int,
    seq_len: int,
    max_tokens: int | None = None,
    *,
    part: int = 0,
    parts: int = 1,
) -> Iterator[Batch]:
    """The whole split once, in order; the last sequence is padded, the last batch may be smaller.

    Readers that share it get every `parts`-th batch, and all get the same number: one that has none
    left gets the first one without labels.

    Args:
        split: tokens to read.
        batch_size: sequences per batch, B.
        seq_len: tokens per sequence, T.
        max_tokens: read only about this many tokens, in sequences spread evenly over the split.
        part: number of this reader, from 0.
        parts: how many share the split.

    Raises:
        DataError: when the split has fewer than two tokens.
    """
    count = sequence_count(split, seq_len)
    if not split.whole_documents:
        count = -(-(split.token_count - 1) // seq_len)
    if count < 1:
        raise DataError(f"{split.name} has {split.token_count} tokens: nothing to predict")
    indices = np.arange(count)
    if max_tokens is not None and max_tokens < count * seq_len:
        fewer = max(1, max_tokens // seq_len)
        indices = np.arange(fewer) * count // fewer
    starts = range(0, len(indices), batch_size)
    for first in range(0, len(starts), parts):
        if first + part < len(starts):
            start = starts[first + part]
            yield batch_of(split, indices[start : start + batch_size], seq_len)
        else:
            batch = batch_of(split, indices[:batch_size], seq_len)
            nothing = torch.full_like(batch.labels_BT, IGNORED)
            yield dataclasses.replace(batch, labels_BT=nothing)
