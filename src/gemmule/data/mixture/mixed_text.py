"""A source of batches over several splits, mixed by a schedule."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gemmule.data.batch import Batch
from gemmule.data.dataset import Split
from gemmule.data.mixture.schedule import Schedule
from gemmule.data.packed_text import SEQUENCE_INDICES, batch_of
from gemmule.errors import DataError

SOURCES = "sources_B"  # extra of a batch: number of each row's source; its index is in that source


class MixedText:
    """A `Source`: the rows of a schedule, cut from one split for each of its sources.

    Each split is cut as `PackedText` cuts it, and read in an order of its own in each epoch. The
    position is the number of rows that all ranks have read; which windows they were follows from
    it, so that any number of ranks, with batches of any size, goes on from it.

    Args:
        splits: the training split of each source.
        schedule: which source has which row.
        batch_size: sequences per batch, B.
        seq_len: tokens per sequence, T.
        seed: seed of the orders.
        part: number of this reader, from 0.
        parts: how many read the rows together: of each `parts * batch_size` rows, this one yields
            the `part`-th batch_size.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        schedule: Schedule,
        batch_size: int,
        seq_len: int,
        seed: int,
        *,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self.schedule = schedule
        self._splits = splits
        self._batch_size = batch_size
        self._seq_len = seq_len
        self._seed = seed
        self._part, self._parts = part, parts
        self._position = 0
        self._orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}  # by source: epoch, order

    def next(self) -> Batch:
        """The next batch; after the run's last row the last weights go on."""
        first = self._position + self._part * self._batch_size
        self._position += self._parts * self._batch_size
        rows = np.arange(first, first + self._batch_size)
        sources, counts = self.schedule.at(rows)
        indices = np.array(
            [self._window(*pair) for pair in zip(sources.tolist(), counts.tolist(), strict=True)]
        )
        tokens = np.empty((3, self._batch_size, self._seq_len), np.int64)
        for source in np.unique(sources):
            mine = sources == source
            part = batch_of(self._splits[source], indices[mine], self._seq_len)
            tokens[:, mine] = np.stack([part.tokens_BT, part.labels_BT, part.doc_ids_BT])
        extras = {SEQUENCE_INDICES: torch.from_numpy(indices), SOURCES: torch.from_numpy(sources)}
        inputs, labels, doc_ids = map(torch.from_numpy, tokens)
        return Batch(inputs, labels, doc_ids, extras=extras)

    def state(self) -> dict[str, Any]:
        """The position: seed, rows read by all ranks, and the schedule that they belong to."""
        return {
            "seed": self._seed, "position": self._position, "mixture": self.schedule.identity,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `state` returned, for the same schedule.

        Raises:
            DataError: when it is not a position in this mixture.
        """
        seed, position = state.get("seed"), state.get("position")
        if state.get("mixture") != self.schedule.identity:
            raise DataError(
                "the training state was saved with another mixture (other folders, weights, stages "
                "or steps): resume with the settings and the data that the run was started with"
            )
        if not (isinstance(seed, int) and isinstance(position, int) and position >= 0):
            raise DataError(f"{dict(state)} is not a position in a mixture: start the run again")
        self._seed, self._position = seed, position
        self._orders.clear()

    def read(self) -> dict[str, dict[str, float]]:
        """By source, the tokens and epochs that all ranks have read up to now."""
        rows = self.schedule.before(self._position)
        epochs = self.schedule.epochs(self._position)
        return {
            name: {"tokens": int(n) * self._seq_len, "epochs": round(float(e), 4)}
            for name, n, e in zip(self.schedule.names, rows, epochs, strict=True)
        }

    def _window(self, source: int, count: int) -> int:
        """The window that is read of a source after `count` others."""
        epoch, place = divmod(count, int(self.schedule.windows[source]))
        if source not in self._orders or self._orders[source][0] != epoch:
            seed = [self._seed, epoch, source]
            order = np.random.default_rng(seed).permutation(self.schedule.windows[source])
            self._orders[source] = epoch, order
        return int(self._orders[source][1][place])
