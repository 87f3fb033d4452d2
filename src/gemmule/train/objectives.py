"""What a step minimises: a summed loss over a micro-batch, and figures to report beside it."""

from typing import Protocol

import torch
from torch import Tensor

from gemmule.data.loader import Batch
from gemmule.distill.divergences import CROSS_ENTROPY, Divergence
from gemmule.distill.losses import (
    check_sparse,
    linear_cross_entropy,
    linear_distillation,
    linear_sparse_distillation,
)
from gemmule.distill.store import Store, at_temperature, check_temperature
from gemmule.model.gemma import Gemma
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
        x_BTD = model.hidden_states(batch.tokens_BT, segments_BT=batch.segments_BT)
        loss = linear_cross_entropy(
            x_BTD.flatten(0, 1),
            model.embed_tokens.weight,
            batch.targets_BT.flatten(),
            cap=model.config.final_logit_softcapping,
            compiled=self.compiled,
        )
        return loss, {}

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Of the model alone."""
        return student_flops(model, seq_len)


class Distillation:
    """Learning from a teacher's distribution (report, section 3)."""

    def __init__(
        self,
        teacher: LocalTeacher,
        temperature: float,
        alpha: float,
        compiled: bool,
        divergence: Divergence = CROSS_ENTROPY,
    ) -> None:
        self.teacher, self.compiled, self.divergence = teacher, compiled, divergence
        self.temperature, self.alpha = temperature, alpha

    def __call__(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed distillation loss; beside it the student's next-token loss."""
        with torch.no_grad():
            teacher_x_BTD = self.teacher.hidden_states(batch)
        x_BTD = model.hidden_states(batch.tokens_BT, segments_BT=batch.segments_BT)
        loss, hard = linear_distillation(
            x_BTD.flatten(0, 1),
            model.embed_tokens.weight,
            teacher_x_BTD.flatten(0, 1),
            self.teacher.head,
            batch.targets_BT.flatten(),
            cap=model.config.final_logit_softcapping,
            teacher_cap=self.teacher.cap,
            temperature=self.temperature,
            alpha=self.alpha,
            divergence=self.divergence,
            vocab=self.teacher.vocab_size,
            compiled=self.compiled,
        )
        return loss, {"next_token_loss": hard}

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Of the student, and of the teacher's forward pass."""
        return student_flops(model, seq_len) + self.teacher.forward_flops_per_token(seq_len)


class StoredDistillation:
    """Learning from what was recorded of a teacher's distribution; the teacher is not needed.

    Args:
        store: of the very windows that the loader cuts.
        temperature: of both distributions; one that the stored targets can be brought to.
        alpha: weight of the next-token loss.
        compiled: see gemmule.distill.losses.
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
        stored = self.store.targets(batch.windows_B.tolist())
        targets = at_temperature(stored, self.temperature, self.store.spec)
        x_BTD = model.hidden_states(batch.tokens_BT, segments_BT=batch.segments_BT)
        loss, hard = linear_sparse_distillation(
            x_BTD.flatten(0, 1),
            model.embed_tokens.weight,
            targets.to(x_BTD.device),
            batch.targets_BT.flatten(),
            cap=model.config.final_logit_softcapping,
            alpha=self.alpha,
            divergence=self.divergence,
            compiled=self.compiled,
        )
        return loss, {"next_token_loss": hard}

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """Of the student alone: recording was paid for before."""
        return student_flops(model, seq_len)
