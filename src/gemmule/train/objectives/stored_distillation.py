"""Distillation from a logit store: what was recorded of a teacher; the teacher is not loaded."""

from typing import Any

from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.data.packed_text import SEQUENCE_INDICES
from gemmule.losses.divergences import (
    CROSS_ENTROPY,
    DistillationLoss,
    Divergence,
    check_sparse,
)
from gemmule.model.gemma import Gemma
from gemmule.teachers.logit_store import Store, at_temperature, check_temperature
from gemmule.train.objective import Objective


class StoredDistillation(Objective):
    """Divergence from the recorded part of a teacher's distribution.

    Args:
        store: targets of the sequences that the source yields.
        temperature: softmax temperature of both distributions; one that the stored targets can be
            brought to.
        alpha: weight of the next-token loss.
        divergence: cross-entropy or forward KL.

    Raises:
        ConfigError: when the targets cannot be brought to the temperature, or the divergence needs
            the whole distribution.
    """

    def __init__(
        self,
        store: Store,
        temperature: float,
        alpha: float,
        divergence: Divergence = CROSS_ENTROPY,
    ) -> None:
        check_temperature(store.spec, temperature)
        check_sparse(divergence)
        self.store, self.divergence = store, divergence
        self.temperature, self.alpha = temperature, alpha

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed distillation loss; further sums: the student's next-token loss."""
        stored = self.store.targets(batch.extras[SEQUENCE_INDICES].tolist())
        targets = at_temperature(stored, self.temperature, self.store.spec)
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        loss, hard = model.head.sparse_distillation(
            x_BTD.flatten(0, 1),
            targets.to(x_BTD.device),
            batch.labels_BT.flatten(),
            DistillationLoss(self.divergence, self.temperature, self.alpha),
            weights_N=None if batch.weights_BT is None else batch.weights_BT.flatten(),
            compiled=self.compiled,
        )
        return loss, {"next_token_loss": hard}

    def describe(self) -> dict[str, Any]:
        """Divergence, temperature and alpha."""
        return {
            "name": "distillation",
            "loss": self.divergence.kind,
            **self.divergence.parameter(),
            "temperature": self.temperature,
            "alpha": self.alpha,
        }
