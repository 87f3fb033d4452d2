"""Where a training run's batches come from."""

from collections.abc import Mapping
from typing import Any, Protocol

from gemmule.data.batch import Batch


class Source(Protocol):
    """An endless stream of batches whose position can be saved.

    The loop calls `next` once for each micro-batch of a step, before the step's first forward pass,
    and `state` after the step. A source that is given a state which it returned earlier continues
    with exactly the batch that came next; that is what makes resumed runs exact.

    A source that needs the model, for instance to sample rollouts, takes it as an argument of its
    constructor: a recipe builds the model first, and the loop trains that same object in place.
    `next` then always sees the weights after the last finished step. Such a source must leave the
    weights, the model's mode and torch's global random state as they were, and its own state
    includes whatever its sampling depends on.
    """

    def next(self) -> Batch:
        """The next batch, on the CPU."""
        ...

    def state(self) -> dict[str, Any]:
        """The position as JSON-serializable values."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `state` returned.

        Raises:
            DataError: when it cannot be a position in this source.
        """
        ...
