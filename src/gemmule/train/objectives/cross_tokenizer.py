"""Distillation from a teacher that has another tokenizer, by the likelihoods of spans."""

from typing import Any

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.span_likelihood import span_log_likelihoods, span_matching
from gemmule.model.gemma import Gemma
from gemmule.teachers.alignment import align_batch
from gemmule.teachers.any_tokenizer import AnyTokenizer
from gemmule.teachers.teacher import LocalTeacher
from gemmule.train.objectives.taught import TaughtObjective


class CrossTokenizerDistillation(TaughtObjective):
    """Matches the teacher's likelihoods of spans of text (losses/span_likelihood.py).

    Args:
        teacher: model that reads its own tokenization of the same documents; it has a `tokenizer`.
        tokenizer: tokenizer of the data.
        span_temperature: temperature of the spans' likelihoods, see span_matching.
        alpha: weight of the next-token loss.
    """

    def __init__(
        self, teacher: LocalTeacher, tokenizer: AnyTokenizer, span_temperature: float, alpha: float
    ) -> None:
        assert teacher.tokenizer is not None
        self.teacher, self.tokenizers = teacher, (tokenizer, teacher.tokenizer)
        self.span_temperature, self.alpha = span_temperature, alpha

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of the spans; further sums: the next-token loss and the number of spans."""
        aligned = align_batch(batch, *self.tokenizers, self.teacher.context)
        device = batch.tokens_BT.device
        theirs = aligned.teacher.to(device)
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
        sums = {"next_token_loss": hard.detach(), "spans": count}
        return (1.0 - self.alpha) * soft + self.alpha * hard, sums

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """A training step of the student, its head once more, and a forward pass of the teacher.

        The teacher is assumed to need as many tokens for a text as the student.
        """
        again = 2.0 * model.config.vocab_size * model.config.hidden_size
        teaching = self.teacher.forward_flops_per_token(seq_len)
        return super().flops_per_token(model, seq_len) + again + teaching

    def describe(self) -> dict[str, Any]:
        """Span temperature and alpha."""
        return {
            "name": "distillation",
            "loss": "span_likelihoods",
            "span_temperature": self.span_temperature,
            "alpha": self.alpha,
        }
