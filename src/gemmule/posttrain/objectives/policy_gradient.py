"""The policy gradient on answers that were sampled from the weights as they are.

There is one optimizer step per batch of rollouts, so the ratio of new to old probabilities is 1,
and its clipping has nothing to clip: the loss is the sum of -weight x log p over the tokens of
answers, where a weight is an advantage, or 1 for an answer to imitate.

Shapes: B rows, T tokens of a row, A tokens of answers, D model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.losses.divergences import DistillationLoss, Divergence
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.posttrain.anchor import Anchor
from gemmule.posttrain.answer_rows import SAMPLED_LOGPROBS
from gemmule.posttrain.sampler_check import SamplerCheck
from gemmule.train.objective import Objective

# Extra of a batch: whether a row's answer is the anchor's rather than the policy's, bool [B].
FROM_ANCHOR = "from_anchor_B"
LossType = Literal["rloo", "grpo", "dr_grpo", "dapo"]


@dataclass(frozen=True)
class Normalization:
    """What the summed loss of a step is divided by.

    Attributes:
        loss_type: "rloo": the number of answers. "dr_grpo": that times the longest answer, a
            constant, so that length has no influence (arXiv 2503.20783). "dapo": the tokens of all
            answers (arXiv 2503.14476). "grpo": the number of answers, each of which counts with
            the mean over its own tokens (arXiv 2402.03300), so that long wrong answers cost less.
        max_new_tokens: longest answer.
        rows_per_answer: rows of a batch for each answer that counts; J-BOND trains on two answers
            for one of the policy.
    """

    loss_type: LossType
    max_new_tokens: int
    rows_per_answer: int = 1

    def denominator(self, batches: Sequence[Batch]) -> float:
        """The denominator of a step."""
        answers = sum(len(batch.tokens_BT) for batch in batches) / self.rows_per_answer
        if self.loss_type == "dr_grpo":
            return answers * self.max_new_tokens
        if self.loss_type == "dapo":
            return float(sum(int((batch.labels_BT != IGNORED).sum()) for batch in batches))
        return answers

    def token_weight(self, length: int) -> float:
        """Weight of each token of an answer of `length` tokens."""
        return 1 / length if self.loss_type == "grpo" else 1.0


class PolicyGradient(Objective):
    """Sum of -weight x log p over the tokens of answers; the weights come with the batch.

    Args:
        normalization: denominator.
        check: compares the model's log-probabilities with the sampler's.
        anchor: model that the policy is kept close to; None: there is none.
        exact_beta: weight of a penalty on the divergence from the anchor, summed over the
            vocabulary at each token; 0: there is none. Its variance is lower than that of the
            sampled tokens' log ratios in the reward. Its gradient leaves out that a token also
            decides which tokens follow.
    """

    def __init__(
        self,
        normalization: Normalization,
        check: SamplerCheck,
        anchor: Anchor | None = None,
        exact_beta: float = 0.0,
    ) -> None:
        self.normalization, self.check = normalization, check
        self.anchor, self.exact_beta = anchor, exact_beta
        self._per_answer = 1.0  # the loop divides by the denominator, and kl is per answer

    def begin_step(self, model: Gemma, batches: Sequence[Batch]) -> None:
        """Counts the answers of the step."""
        answers = sum(len(batch.tokens_BT) for batch in batches)
        self._per_answer = self.denominator(batches) / answers

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Summed loss; with an exact penalty also "kl".

        That is the divergence from the anchor summed over the tokens of an answer, nats, the mean
        over answers; with loss_type "grpo", which counts an answer by its mean over tokens, the
        mean of those.

        Raises:
            TrainingError: when sampler and trainer differ.
        """
        assert batch.weights_BT is not None
        labels_N = batch.labels_BT.flatten()
        index_A = (labels_N != IGNORED).nonzero()[:, 0]
        labels_A = labels_N[index_A]
        x_BTD = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        x_AD = x_BTD.flatten(0, 1)[index_A]
        log_p_A = model.head.log_likelihoods(x_AD, labels_A, compiled=self.compiled)
        self._check(batch, log_p_A, index_A)
        loss = -(log_p_A * batch.weights_BT.flatten()[index_A]).sum()
        if self.anchor is None or not self.exact_beta:
            return loss, {}
        kl = self._exact_kl(self.anchor, model, batch, x_AD, index_A)
        return loss + self.exact_beta * kl, {"kl": kl.detach() * self._per_answer}

    def _check(self, batch: Batch, log_p_A: Tensor, index_A: Tensor) -> None:
        sampled_A = batch.extras[SAMPLED_LOGPROBS].flatten()[index_A]
        if FROM_ANCHOR in batch.extras:
            own_A = ~batch.extras[FROM_ANCHOR][index_A // batch.labels_BT.shape[1]]
            log_p_A, sampled_A = log_p_A[own_A], sampled_A[own_A]
        self.check.compare(log_p_A, sampled_A)

    def _exact_kl(
        self, anchor: Anchor, model: Gemma, batch: Batch, x_AD: Tensor, index_A: Tensor
    ) -> Tensor:
        x_BTD = anchor.model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT)
        kl, _ = model.head.distillation(
            x_AD,
            anchor.model.head,
            x_BTD.flatten(0, 1)[index_A],
            batch.labels_BT.flatten()[index_A],
            DistillationLoss(Divergence("reverse_kl")),
            weights_N=self._token_weights(batch).flatten()[index_A],
            compiled=self.compiled,
        )
        return kl

    def _token_weights(self, batch: Batch) -> Tensor:
        """Weight of each token of a row by the normalization [B, T]."""
        lengths_B = (batch.labels_BT != IGNORED).sum(-1).tolist()
        weights = [self.normalization.token_weight(length) for length in lengths_B]
        weights_B = torch.tensor(weights, device=batch.labels_BT.device)
        return weights_B[:, None].expand(batch.labels_BT.shape)

    def denominator(self, batches: Sequence[Batch]) -> float:
        """That of the normalization."""
        return self.normalization.denominator(batches)

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """A training step, and a forward pass of the anchor if there is one; without sampling."""
        anchor = self.anchor is not None
        forward = model.config.forward_flops_per_token(seq_len)
        return super().flops_per_token(model, seq_len) + anchor * forward

    def prepare(self, device: str, compiled: bool) -> None:
        """Moves the anchor to the device of the model."""
        super().prepare(device, compiled)
        if self.anchor is not None:
            self.anchor.model.to(device)

    def describe(self) -> dict[str, Any]:
        """The denominator, and the exact penalty if there is one."""
        values = {"name": "policy gradient", "loss_type": self.normalization.loss_type}
        return {**values, **({"exact_beta": self.exact_beta} if self.exact_beta else {})}
