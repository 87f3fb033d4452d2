"""Distillation from a teacher that has another tokenizer, by the likelihoods of spans."""

import re
from typing import Any

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.errors import ConfigError
from gemmule.losses.head import Head
from gemmule.losses.span_likelihood import (
    NO_SPAN,
    joined_with_spaces,
    span_log_likelihoods,
    span_matching,
)
from gemmule.model.gemma import Gemma
from gemmule.teachers.alignment import Cuts, align_batch
from gemmule.teachers.any_tokenizer import AnyTokenizer
from gemmule.teachers.teacher import LocalTeacher
from gemmule.train.objectives.taught import TaughtObjective

_SPACE_WITHIN = re.compile(rb"\S ")


class CrossTokenizerDistillation(TaughtObjective):
    """Matches the teacher's likelihoods of spans of text (losses/span_likelihood.py).

    Args:
        teacher: model that reads its own tokenization of the same documents; it has a `tokenizer`.
        tokenizer: tokenizer of the data.
        span_temperature: temperature of the spans' likelihoods, see span_matching.
        alpha: weight of the next-token loss.
        at_spaces: end spans before spaces, and correct for what their cuts reveal.
        vocab_size: number of the data's tokens.

    Raises:
        ConfigError: with `at_spaces`, when tokens of one of the two go on after a space.
    """

    def __init__(
        self,
        teacher: LocalTeacher,
        tokenizer: AnyTokenizer,
        span_temperature: float,
        alpha: float,
        *,
        at_spaces: bool,
        vocab_size: int,
    ) -> None:
        assert teacher.tokenizer is not None
        self.teacher, self.tokenizers = teacher, (tokenizer, teacher.tokenizer)
        self.span_temperature, self.alpha, self.at_spaces = span_temperature, alpha, at_spaces
        self._begin_with_space: list[Tensor] = []  # of the student's tokens, and the teacher's
        if at_spaces:
            sizes = (vocab_size, teacher.vocab_size)
            self._begin_with_space = [
                _begin_with_space(tokenizer, size)
                for tokenizer, size in zip(self.tokenizers, sizes, strict=True)
            ]

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of the spans; further sums: the next-token loss and the number of spans."""
        aligned = align_batch(
            batch, *self.tokenizers, self.teacher.context, at_spaces=self.at_spaces
        )
        device = batch.tokens_BT.device
        theirs = aligned.teacher.to(device)
        with torch.no_grad():
            teacher_x_MD = self.teacher.hidden_states(theirs).flatten(0, 1)
            teacher_log_p_M = self.teacher.head.log_likelihoods(
                teacher_x_MD, theirs.labels_BT.flatten()
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
        if self.at_spaces:
            ours, whose = self._begin_with_space
            student_S = _joined(
                student_S, x_BTD.flatten(0, 1), model.head, aligned.student_cuts, ours
            )
            with torch.no_grad():
                teacher_S = _joined(
                    teacher_S, teacher_x_MD, self.teacher.head, aligned.teacher_cuts, whose
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
        if self.at_spaces:  # two forward passes and a backward pass at every third token, about
            again += 8.0 / 3 * model.config.vocab_size * model.config.hidden_size
        teaching = self.teacher.forward_flops_per_token(seq_len)
        return super().flops_per_token(model, seq_len) + again + teaching

    def describe(self) -> dict[str, Any]:
        """Span temperature, alpha, and where spans end."""
        return {
            "name": "distillation",
            "loss": "span_likelihoods",
            "span_temperature": self.span_temperature,
            "alpha": self.alpha,
            "span_ends": "space" if self.at_spaces else "token",
        }


def _joined(
    likelihood_S: Tensor, x_ND: Tensor, head: Head, cuts: Cuts, begin_with_space_V: Tensor
) -> Tensor:
    """Likelihoods of spans, corrected for what their cuts reveal."""
    ending_N, starting_N = cuts.ending_BT.flatten(), cuts.starting_BT.flatten()
    at_C = ((ending_N != NO_SPAN) | (starting_N != NO_SPAN)).nonzero()[:, 0].to(x_ND.device)
    log_space_C = head.log_mass(x_ND[at_C], begin_with_space_V.to(x_ND.device))
    ending_C, starting_C = (each.to(x_ND.device)[at_C] for each in (ending_N, starting_N))
    return joined_with_spaces(likelihood_S, log_space_C, ending_C, starting_C)


def _begin_with_space(tokenizer: AnyTokenizer, vocab_size: int) -> Tensor:
    """Whether each token's text begins with a space, [V].

    Raises:
        ConfigError: when a token goes on after a space, so that there may be no boundary before it.
    """
    texts = tokenizer.token_bytes(range(vocab_size))
    across = next((text for text in texts if _SPACE_WITHIN.search(text)), None)
    if across is not None:
        raise ConfigError(
            f'span_ends = "space": a tokenizer has tokens with a space inside, such as {across!r}, '
            'and need not have a boundary before each space; use span_ends = "token"'
        )
    return torch.tensor([text.startswith(b" ") for text in texts])
