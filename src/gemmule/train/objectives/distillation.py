"""Distillation from a teacher in memory (Gemma 2 report, section 3)."""

from typing import Any

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.divergences import CROSS_ENTROPY, DistillationLoss, Divergence
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.teachers.teacher import LocalTeacher
from gemmule.train.objectives.taught import TaughtObjective


class Distillation(TaughtObjective):
    """Divergence from a teacher's distribution, computed with the teacher itself.

    Args:
        teacher: model whose distribution the student learns.
        temperature: softmax temperature of both distributions.
        alpha: weight of the next-token loss.
        divergence: distance between the two distributions.
        route_above: entropy of the teacher at temperature 1, nats, above which a token learns from
            the next token alone; it costs a second product with each head. None: no token does.
    """

    def __init__(
        self,
        teacher: LocalTeacher,
        temperature: float,
        alpha: float,
        divergence: Divergence = CROSS_ENTROPY,
        route_above: float | None = None,
    ) -> None:
        self.teacher, self.divergence = teacher, divergence
        self.temperature, self.alpha, self.route_above = temperature, alpha, route_above

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed distillation loss.

        Further sums: the student's next-token loss; with `route_above` also "routed", the number of
        tokens that learned from the next token alone.
        """
        with torch.no_grad():
            teacher_x_ND = self.teacher.hidden_states(batch).flatten(0, 1)
        labels_N = batch.labels_BT.flatten()
        weights_N = None if batch.weights_BT is None else batch.weights_BT.flatten()
        x_ND = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT).flatten(0, 1)
        if self.route_above is None:
            loss, hard = self._taught(model, x_ND, teacher_x_ND, labels_N, weights_N)
            return loss, {"next_token_loss": hard}
        taught_N = self.teacher.head.entropies(teacher_x_ND) <= self.route_above
        weights = (taught_N, ~taught_N)
        if weights_N is not None:
            weights = (taught_N * weights_N, ~taught_N * weights_N)
        loss, hard = self._taught(model, x_ND, teacher_x_ND, labels_N, weights[0])
        routed = model.head.cross_entropy(
            x_ND, labels_N, weights_N=weights[1], compiled=self.compiled
        )
        count = (~taught_N & (labels_N != IGNORED)).sum()
        return loss + routed, {"next_token_loss": hard + routed.detach(), "routed": count}

    def _taught(
        self,
        model: Gemma,
        x_ND: Tensor,
        teacher_x_ND: Tensor,
        labels_N: Tensor,
        weights_N: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Summed distillation loss of the tokens with a weight, and their next-token loss."""
        return model.head.distillation(
            x_ND,
            self.teacher.head,
            teacher_x_ND,
            labels_N,
            DistillationLoss(self.divergence, self.temperature, self.alpha),
            weights_N=weights_N,
            compiled=self.compiled,
        )

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """A training step of the student and a forward pass of the teacher."""
        flops = super().flops_per_token(model, seq_len)
        flops += self.teacher.forward_flops_per_token(seq_len)
        if self.route_above is not None:
            flops += 6.0 * model.head.weight_VD.numel() + 2.0 * self.teacher.head.weight_VD.numel()
        return flops

    def describe(self) -> dict[str, Any]:
        """Divergence, temperature, alpha, and the entropy threshold if there is one."""
        routing = {} if self.route_above is None else {"route_above": self.route_above}
        return {
            "name": "distillation",
            "loss": self.divergence.kind,
            **self.divergence.parameter(),
            "temperature": self.temperature,
            "alpha": self.alpha,
            **routing,
        }
