"""Steps on the model's own answers, mixed with steps on answers from data (GKD's lambda)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmule.data.batch import Batch
from gemmule.data.source import Source
from gemmule.errors import DataError
from gemmule.posttrain.answer_rows import rows_of
from gemmule.posttrain.rendering import Rendered
from gemmule.posttrain.rollouts import drawn


class MixedSource:
    """A `Source` whose steps take their batches either from rollouts or from conversations.

    Which of them, the seed and the number of the step decide (arXiv 2306.13649, algorithm 1).

    Args:
        rollouts: batches of the model's own answers.
        conversations: answers from data.
        fraction: fraction of the steps that are rollouts, lambda.
        micro_batch: rows of a batch.
        micro_batches: batches of an optimizer step.
        seed: seed of the choice, and of the order of the conversations.

    Raises:
        DataError: when there are no conversations.
    """

    def __init__(
        self,
        rollouts: Source,
        conversations: Sequence[Rendered],
        fraction: float,
        *,
        micro_batch: int,
        micro_batches: int,
        seed: int,
    ) -> None:
        if not conversations:
            raise DataError("there are no conversations to train on")
        self._rollouts, self._conversations, self._fraction = rollouts, conversations, fraction
        self._micro_batch, self._micro_batches, self._seed = micro_batch, micro_batches, seed
        self._batches = 0  # that were handed out, of both

    def is_own(self, step: int) -> bool:
        """Whether a step, counted from 0, trains on the model's own answers."""
        return bool(np.random.default_rng([self._seed, step]).random() < self._fraction)

    def next(self) -> Batch:
        """The next batch of the step's kind."""
        step = self._batches // self._micro_batches
        first = self._batches * self._micro_batch
        self._batches += 1
        if self.is_own(step):
            return self._rollouts.next()
        places = range(first, first + self._micro_batch)
        indices = drawn(len(self._conversations), self._seed, places)
        return rows_of([self._conversations[i] for i in indices])

    def state(self) -> dict[str, Any]:
        """Number of batches, and the position in the rollouts."""
        return {"batches": self._batches, "rollouts": self._rollouts.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `state` returned.

        Raises:
            DataError: when it cannot be a position of this source.
        """
        batches, rollouts = state.get("batches"), state.get("rollouts")
        if (
            not isinstance(batches, int)
            or batches < 0
            or batches % self._micro_batches
            or not isinstance(rollouts, Mapping)
        ):
            raise DataError(
                f"{dict(state)} is not a position between two steps of {self._micro_batches} "
                "batches: resume with the run's own settings"
            )
        self._rollouts.load_state(rollouts)
        self._batches = batches
