"""Batches of packed documents, with a position that a checkpoint can hold.

Shape letters: B batch, T tokens in a row.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from gemmule.data.dataset import Split
from gemmule.errors import DataError

IGNORED = -100  # torch's default ignore_index


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some rows of packed documents, int64, of shape [B, T] but for the last.

    Attributes:
        tokens_BT: inputs.
        targets_BT: the token after each input; -100 where that is another document or padding.
        segments_BT: 1, 2, … numbers the documents within a row; 0 is padding.
        windows_B: which window of the split each row is, counted from 0.
    """

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    segments_BT: torch.Tensor
    windows_B: torch.Tensor

    def to(self, device: str) -> "Batch":
        """The same on another device."""
        return Batch(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))


class Loader:
    """An endless, seeded stream of batches over a split.

    The split's tokens are cut into windows of seq_len + 1 tokens, each beginning with the last of
    the one before, so that every token is a target once an epoch (up to seq_len - 1 tokens at the
    split's end excepted). Every epoch has its own order.

    Args:
        split: what to read.
        batch_size: rows a batch, B.
        seq_len: tokens a row, T.
        seed: decides the order.
        windows: use only so many, the first ones; None: all.

    Raises:
        DataError: when the split is shorter than one window.
    """

    def __init__(
        self, split: Split, batch_size: int, seq_len: int, seed: int, windows: int | None = None
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
        self._epoch = 0
        self._position = 0
        self._windows = whole_windows(split, seq_len)
        if windows is not None:
            self._windows = min(windows, self._windows)
        if self._windows < 1:
            raise DataError(
                f"seq_len {seq_len} is longer than the data: {split.name} has "
                f"{split.token_count} tokens and a row needs {seq_len + 1}; use a shorter seq_len "
                "or more text"
            )
        self._order = self._shuffled()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next()

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of one pass over the split's whole windows."""
        return self._windows * self._seq_len

    def next(self) -> Batch:
        """The next batch."""
        chosen = np.empty(self._batch_size, np.int64)
        for i in range(self._batch_size):
            if self._position == self._windows:
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffled()
            chosen[i] = self._order[self._position]
            self._position += 1
        return batch_of(self._split, chosen, self._seq_len)

    def state(self) -> dict[str, int]:
        """The position: what `load_state` needs to go on with the very next batch."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Goes to a position that `state` returned, for the same split and seq_len.

        Raises:
            DataError: when it cannot be a position in this split.
        """
        seed, epoch, position = (state.get(key) for key in ("seed", "epoch", "position"))
        if (
            not (isinstance(seed, int) and isinstance(epoch, int) and isinstance(position, int))
            or epoch < 0
            or not 0 <= position <= self._windows
        ):
            raise DataError(
                f"{dict(state)} is no position in {self._split.name}, which has {self._windows} "
                f"windows of {self._seq_len} tokens: resume with the data it was started with"
            )
        self._seed, self._epoch, self._position = seed, epoch, position
        self._order = self._shuffled()

    def _shuffled(self) -> npt.NDArray[np.int64]:
        return _order(self._windows, self._seed, self._epoch)


def whole_windows(split: Split, seq_len: int) -> int:
    """Windows of seq_len tokens that a split has, each with the token after its last."""
    return (split.token_count - 1) // seq_len


def times_read(windows: int, rows: int, seed: int) -> npt.NDArray[np.int64]:
    """How often a loader has read each window once it has given `rows` rows.

    Args:
        windows: how many it reads in an epoch.
        rows: those of all batches so far.
        seed: the loader's.

    Returns:
        Counts, shape [windows].
    """
    epochs, rest = divmod(rows, windows)
    times = np.full(windows, epochs, np.int64)
    times[_order(windows, seed, epochs)[:rest]] += 1
    return times


def _order(windows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(windows)


def batch_of(split: Split, windows: npt.NDArray[np.int64], seq_len: int) -> Batch:
    """The named windows, in that order; the split's last may be shorter and is padded."""
    rows = np.full((len(windows), seq_len + 1), split.pad_id, np.int64)
    lengths = np.empty(len(windows), np.int64)
    for i, window in enumerate(windows):
        start = int(window) * seq_len
        part = split.read(start, start + seq_len + 1)
        rows[i, : len(part)] = part
        lengths[i] = len(part)
    return _batch(rows, split, lengths, windows)


def eval_batches(
    split: Split, batch_size: int, seq_len: int, max_tokens: int | None = None
) -> Iterator[Batch]:
    """The whole split once, in order; the last window is padded, the last batch may be smaller.

    Args:
        split: what to read.
        batch_size: rows a batch, B.
        seq_len: tokens a row, T.
        max_tokens: read only about so many tokens, in windows spread evenly over the split.

    Raises:
        DataError: when the split has fewer than two tokens.
    """
    windows = -(-(split.token_count - 1) // seq_len)
    if windows < 1:
        raise DataError(f"{split.name} has {split.token_count} tokens: nothing to predict")
    chosen = np.arange(windows)
    if max_tokens is not None and max_tokens < windows * seq_len:
        count = max(1, max_tokens // seq_len)
        chosen = np.arange(count) * windows // count
    for first in range(0, len(chosen), batch_size):
        yield batch_of(split, chosen[first : first + batch_size], seq_len)


def _batch(
    rows: npt.NDArray[np.int64],
    split: Split,
    lengths: npt.NDArray[np.int64],
    windows: npt.NDArray[np.int64],
) -> Batch:
    """Rows of T + 1 tokens, of which `lengths` are real, as a batch of T."""
    tokens = rows[:, :-1]
    starts = tokens == split.bos_id
    segments = np.cumsum(starts, axis=1) + ~starts[:, :1]
    # The token before a <bos> belongs to another document and cannot know what comes.
    targets = np.where(rows[:, 1:] == split.bos_id, IGNORED, rows[:, 1:])
    place = np.arange(tokens.shape[1])
    real = lengths[:, None] - 1
    targets[place >= real] = IGNORED
    segments[place > real] = 0
    return Batch(
        torch.from_numpy(np.ascontiguousarray(tokens)),
        torch.from_numpy(targets),
        torch.from_numpy(segments),
        torch.from_numpy(windows),
    )
