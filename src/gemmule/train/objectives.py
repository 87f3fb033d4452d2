"""What a step minimises: a summed loss over a micro-batch, and figures to report beside it."""

from typing import Protocol

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.data.packed_text import SEQUENCE_INDICES
from gemmule.losses.divergences import (
    CROSS_ENTROPY,
    DistillationLoss,
    Divergence,
    check_sparse,
)
from gemmule.losses.span_likelihood import span_log_likelihoods, span_matching
from gemmule.model.gemma import Gemma
from gemmule.teachers.alignment import align_batch
from gemmule.teachers.logit_store import Store, at_temperature, check_temperature
from gemmule.teachers.pieces import Pieces
from gemmule.teachers.teacher import LocalTeacher


class Objective(Protocol):
    """A loss; its sums are divided by the number of targets of the whole step by the loop."""

    def __call__(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and other summed figures by name."""
        ...

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Forward and backward, and a teacher's forward pass."""
        ...


def student_flops(model: Gemma, seq_len: int) -> float:
    """Forward and backward pass of one token: three forward passes."""
    return 3 * model.config.forward_flops_per_token(seq_len)


class NextToken:
    """Next-token prediction."""

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled

    def __call__(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed negative log-likelihood, nats."""
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        loss = model.head.cross_entropy(
            x_BTD.flatten(0, 1), batch.labels_BT.flatten(), compiled=self.compiled
        )
        return loss, {}

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Of the model alone."""
        return student_flops(model, seq_len)


class Distillation:
    """Learning from a teacher's distribution (report, section 3).

    Args:
        teacher: whose distribution.
        temperature: of both distributions.
        alpha: weight of the next-token loss.
        compiled: whether the losses go through torch.compile.
        divergence: how far the student is from the teacher.
        route_above: tokens of which the teacher's entropy, at temperature 1, is above so many nats
            learn from the next token alone. Costs the heads' products a second time.
    """

    def __init__(
        self,
        teacher: LocalTeacher,
        temperature: float,
        alpha: float,
        compiled: bool,
        divergence: Divergence = CROSS_ENTROPY,
        route_above: float | None = None,
    ) -> None:
        self.teacher, self.compiled, self.divergence = teacher, compiled, divergence
        self.temperature, self.alpha, self.route_above = temperature, alpha, route_above

    def __call__(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed distillation loss; beside it the student's next-token loss."""
        with torch.no_grad():
            teacher_x_BTD = self.teacher.hidden_states(batch)
        teacher_x_ND, target_N = teacher_x_BTD.flatten(0, 1), batch.labels_BT.flatten()
        sure_N = None
        if self.route_above is not None:
            sure_N = self.teacher.head.entropies(teacher_x_ND) <= self.route_above
        x_ND = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT).flatten(0, 1)
        loss, hard = model.head.distillation(
            x_ND,
            self.teacher.head,
            teacher_x_ND,
            target_N,
            DistillationLoss(self.divergence, self.temperature, self.alpha),
            weights_N=sure_N,
            compiled=self.compiled,
        )
        if sure_N is None:
            return loss, {"next_token_loss": hard}
        routed = model.head.cross_entropy(x_ND, target_N, weights_N=~sure_N, compiled=self.compiled)
        count = (~sure_N & (target_N >= 0)).sum()
        return loss + routed, {"next_token_loss": hard + routed.detach(), "routed": count}

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Of the student, and of the teacher's forward pass."""
        flops = student_flops(model, seq_len) + self.teacher.forward_flops_per_token(seq_len)
        if self.route_above is not None:
            flops += 6.0 * model.head.weight_VD.numel() + 2.0 * self.teacher.head.weight_VD.numel()
        return flops


class StoredDistillation:
    """Learning from what was recorded of a teacher's distribution; the teacher is not needed.

    Args:
        store: of the very windows that the loader cuts.
        temperature: of both distributions; one that the stored targets can be brought to.
        alpha: weight of the next-token loss.
        compiled: whether the losses go through torch.compile.
        divergence: cross-entropy or forward KL.
    """

    def __init__(
        self,
        store: Store,
        temperature: float,
        alpha: float,
        compiled: bool,
        divergence: Divergence = CROSS_ENTROPY,
    ) -> None:
        check_temperature(store.spec, temperature)
        check_sparse(divergence)
        self.store, self.compiled, self.divergence = store, compiled, divergence
        self.temperature, self.alpha = temperature, alpha

    def __call__(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed distillation loss; beside it the student's next-token loss."""
        stored = self.store.targets(batch.extras[SEQUENCE_INDICES].tolist())
        targets = at_temperature(stored, self.temperature, self.store.spec)
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        loss, hard = model.head.sparse_distillation(
            x_BTD.flatten(0, 1),
            targets.to(x_BTD.device),
            batch.labels_BT.flatten(),
            DistillationLoss(self.divergence, self.temperature, self.alpha),
            compiled=self.compiled,
        )
        return loss, {"next_token_loss": hard}

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Of the student alone: recording was paid for before."""
        return student_flops(model, seq_len)


class CrossTokenizerDistillation:
    """Learning from a teacher that cuts text otherwise (losses/span_likelihood.py).

    Args:
        teacher: runs on its own cut of the same documents; its `pieces` say which.
        pieces: the data's tokenizer.
        span_temperature: see span_matching.
        alpha: weight of the next-token loss.
        compiled: whether the losses go through torch.compile.
    """

    def __init__(
        self,
        teacher: LocalTeacher,
        pieces: Pieces,
        span_temperature: float,
        alpha: float,
        compiled: bool,
    ) -> None:
        self.teacher, self.compiled = teacher, compiled
        assert teacher.pieces is not None
        self.pieces = (pieces, teacher.pieces)
        self.span_temperature, self.alpha = span_temperature, alpha

    def __call__(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of the spans; beside it the next-token loss and the number of spans."""
        aligned = align_batch(batch, *self.pieces, self.teacher.context)
        device = batch.tokens_BT.device
        theirs = aligned.teacher.to(str(device))
        with torch.no_grad():
            teacher_log_p_M = self.teacher.head.log_likelihoods(
                self.teacher.hidden_states(theirs).flatten(0, 1), theirs.labels_BT.flatten()
            )
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        log_p_N = model.head.log_likelihoods(
            x_BTD.flatten(0, 1), batch.labels_BT.flatten(), compiled=self.compiled
        )
        spans = [aligned.student_span_BT.to(device), aligned.teacher_span_BU.to(device)]
        student_S, teacher_S = (
            span_log_likelihoods(log_p, span.flatten(), aligned.spans)
            for log_p, span in zip((log_p_N, teacher_log_p_M), spans, strict=True)
        )
        hard = -log_p_N.sum()
        soft = span_matching(student_S, teacher_S, self.span_temperature)
        count = torch.tensor(float(aligned.spans), device=device)
        figures = {"next_token_loss": hard.detach(), "spans": count}
        return (1.0 - self.alpha) * soft + self.alpha * hard, figures

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Of the student, its head once more, and of the teacher's forward pass.

        The teacher is taken to cut a text into as many tokens as the student.
        """
        again = 2.0 * model.config.vocab_size * model.config.hidden_size
        teaching = self.teacher.forward_flops_per_token(seq_len)
        return student_flops(model, seq_len) + again + teaching
