"""Batches of whole conversations that an objective compares, such as the two of a preference pair.

An example is one conversation or several that belong together. A batch holds a number of examples,
all conversations in one row without padding, so that a step computes nothing in vain.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gemmule.data.batch import Batch
from gemmule.errors import DataError
from gemmule.losses.labels import IGNORED
from gemmule.posttrain.rendering import Rendered

EXAMPLES = "example_indices_P"  # extra of a batch: index of each example in the source

Example = tuple[Rendered, ...]


def packed(conversations: Sequence[Rendered]) -> Batch:
    """A batch of one row that holds the conversations one after the other."""
    ids = [torch.tensor(c.ids) for c in conversations]
    labels = [_labels(c) for c in conversations]
    numbers = [torch.full((len(c),), n) for n, c in enumerate(conversations, 1)]
    return Batch(torch.cat(ids)[None], torch.cat(labels)[None], torch.cat(numbers)[None])


def in_batches(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """Slices of consecutive conversations with at most `tokens` tokens, or one longer one."""
    start = total = 0
    for end, length in enumerate(lengths):
        if end > start and total + length > tokens:
            yield slice(start, end)
            start, total = end, 0
        total += length
    if start < len(lengths):
        yield slice(start, len(lengths))


def _labels(conversation: Rendered) -> torch.Tensor:
    """The next token of each token where that is trained, else IGNORED."""
    ids = torch.tensor([*conversation.ids[1:], IGNORED])
    return torch.where(torch.tensor([*conversation.trained[1:], False]), ids, IGNORED)


class AnswerSource:
    """A `Source`: an endless, seeded stream of batches of examples; each epoch has its own order.

    Args:
        examples: all examples of the training split.
        batch_size: examples per batch.
        seed: seed of the order.

    Raises:
        DataError: when there are no examples.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        if not examples:
            raise DataError("there are no examples to train on")
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self._drawn, self._epoch, self._order = 0, 0, self._shuffled(0)

    def next(self) -> Batch:
        """The next batch; its extra EXAMPLES says which examples it holds."""
        places = range(self._drawn, self._drawn + self._batch_size)
        self._drawn = places.stop
        indices = [self._at(place) for place in places]
        batch = packed([c for i in indices for c in self._examples[i]])
        extras = {EXAMPLES: torch.tensor(indices)}
        return Batch(batch.tokens_BT, batch.labels_BT, batch.doc_ids_BT, extras=extras)

    def first(self, count: int) -> list[int]:
        """Indices, in ascending order, of the examples among the first `count` that are drawn."""
        return sorted(self._shuffled(0)[:count].tolist())

    def state(self) -> dict[str, Any]:
        """The position: seed, and number of examples drawn."""
        return {"seed": self._seed, "drawn": self._drawn}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `state` returned, for the same examples.

        Raises:
            DataError: when it cannot be a position in this source.
        """
        seed, drawn = state.get("seed"), state.get("drawn")
        if seed != self._seed or not isinstance(drawn, int) or drawn < 0:
            raise DataError(
                f"{dict(state)} is not a position in a source of seed {self._seed}: resume with "
                "the settings that the run was started with"
            )
        self._drawn = drawn

    def _at(self, place: int) -> int:
        """The example at a place of the endless stream."""
        epoch, position = divmod(place, len(self._examples))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffled(epoch)
        return int(self._order[position])

    def _shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._examples))
