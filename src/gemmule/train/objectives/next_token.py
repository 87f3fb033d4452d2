"""Next-token prediction."""

from typing import Any

from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.train.objective import Objective


class NextToken(Objective):
    """Cross-entropy with the next token."""

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood, nats."""
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        weights_BT = batch.weights_BT
        loss = model.head.cross_entropy(
            x_BTD.flatten(0, 1),
            batch.labels_BT.flatten(),
            weights_N=None if weights_BT is None else weights_BT.flatten(),
            compiled=self.compiled,
        )
        return loss, {}

    def describe(self) -> dict[str, Any]:
        """The name alone: the loss has no settings."""
        return {"name": "next-token prediction"}
