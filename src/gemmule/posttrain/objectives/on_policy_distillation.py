"""Distillation on answers: the whole divergence from a teacher at each token of an answer.

Generalized knowledge distillation (arXiv 2306.13649): the answers are the student's own, sampled
from its weights as they are, or come from data. No gradient goes through the sampling. At each
token the divergence is summed over the whole vocabulary; a method that looks at the sampled token
alone (its advantage is log p_teacher - log p_student) estimates the reverse one.

Shapes: B rows, T tokens of a row, A tokens of answers, D model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.divergences import DistillationLoss, Divergence
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_rows import SAMPLED_LOGPROBS
from gemmule.posttrain.sampler_check import BOUND, SamplerCheck
from gemmule.teachers.teacher import LocalTeacher
from gemmule.train.objectives.taught import TaughtObjective


class OnPolicyDistillation(TaughtObjective):
    """Divergence from a teacher's distribution at the labels of a batch.

    Student and teacher read the same ids. The heads see tokens of answers only: labels mark them,
    and neither prompts nor padding have any.

    Where a batch says with which log-probabilities its labels were sampled, they are compared with
    those of the model that is trained (sampler_check.py).

    Args:
        teacher: model whose distribution the student learns.
        divergence: distance between the two distributions.
        temperature: softmax temperature of both distributions.
        max_logp_difference: largest difference between sampler and trainer, nats, that does not
            stop the run.

    Attributes:
        check: the comparison of sampler and trainer.
    """

    def __init__(
        self,
        teacher: LocalTeacher,
        divergence: Divergence,
        temperature: float = 1.0,
        max_logp_difference: float = BOUND,
    ) -> None:
        self.teacher, self.divergence, self.temperature = teacher, divergence, temperature
        self.check = SamplerCheck(max_logp_difference)

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Summed loss, T^2 times the divergence.

        Further sums: "entropy", the student's negative log-likelihood of the answers. On its own
        samples its mean per token estimates the entropy; a fall to 0 is a collapse.

        Raises:
            TrainingError: when sampler and trainer differ.
        """
        labels_N = batch.labels_BT.flatten()
        index_A = (labels_N != IGNORED).nonzero()[:, 0]
        labels_A = labels_N[index_A]
        with torch.no_grad():
            teacher_x_AD = self.teacher.hidden_states(batch).flatten(0, 1)[index_A]
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        x_AD = x_BTD.flatten(0, 1)[index_A]
        if SAMPLED_LOGPROBS in batch.extras:
            with torch.no_grad():
                log_p_A = model.head.log_likelihoods(x_AD, labels_A, compiled=self.compiled)
            self.check.compare(log_p_A, batch.extras[SAMPLED_LOGPROBS].flatten()[index_A])
        loss, nll = model.head.distillation(
            x_AD,
            self.teacher.head,
            teacher_x_AD,
            labels_A,
            DistillationLoss(self.divergence, self.temperature),
            compiled=self.compiled,
        )
        return loss, {"entropy": nll}

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """A training step of the student and a forward pass of the teacher, without sampling."""
        teacher = self.teacher.forward_flops_per_token(seq_len)
        return super().flops_per_token(model, seq_len) + teacher

    def describe(self) -> dict[str, Any]:
        """Divergence and temperature."""
        return {
            "name": "on-policy distillation",
            "loss": self.divergence.kind,
            **self.divergence.parameter(),
            "temperature": self.temperature,
        }
