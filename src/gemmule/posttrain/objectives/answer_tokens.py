"""Next-token prediction on the trained tokens of conversations."""

from typing import Any

from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.posttrain.segments import Segments, label_loss
from gemmule.train.objective import Objective


class AnswerTokens(Objective):
    """Cross-entropy with the trained tokens; others do not go through the head.

    The loss of a row is the sum of its conversations' losses, each the same bits as in a row of its
    own (segments.py).
    """

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood, nats: conversations added up from left to right."""
        return label_loss(model, Segments.of(batch), compiled=self.compiled), {}

    def describe(self) -> dict[str, Any]:
        """The name alone: the loss has no settings."""
        return {"name": "next-token prediction", "trained": "answers"}
