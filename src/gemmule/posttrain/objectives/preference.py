"""Learning from preferences without a reward model: DPO, IPO and SimPO on pairs, KTO on answers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.posttrain.answer_source import EXAMPLES, packed
from gemmule.posttrain.preference_losses import Answers, KTOLoss, PairLoss
from gemmule.posttrain.reference import Reference, summed
from gemmule.posttrain.rendering import Rendered
from gemmule.posttrain.segments import Segments, label_log_likelihoods
from gemmule.train.objective import Objective

TRAIN, MISMATCHED = "train", "mismatched"  # groups of a Reference


def answers_of(
    model: Gemma, segments: Segments, reference_S: Tensor | None, *, compiled: bool
) -> Answers:
    """Log-probabilities of a batch's answers.

    Args:
        model: the policy.
        segments: the conversations that end with the answers.
        reference_S: log-probabilities under the reference; None: there is none.
        compiled: whether the model's blocks are compiled.
    """
    log_p_S = summed(label_log_likelihoods(model, segments, compiled=compiled))
    reference_S = torch.zeros_like(log_p_S) if reference_S is None else reference_S
    return Answers(log_p_S, reference_S.detach(), segments.label_counts().double())


def pair_sums(loss: PairLoss, answers: Answers) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss of pairs, and further sums; answers 2i and 2i + 1 are the two of pair i."""
    chosen, rejected = answers.rows(slice(0, None, 2)), answers.rows(slice(1, None, 2))
    total = loss.losses(chosen, rejected).sum()
    rewards_S = loss.rewards(answers).detach()
    chosen_P, rejected_P = rewards_S[0::2], rewards_S[1::2]
    sums = {
        "rewards/chosen": chosen_P.sum(),
        "rewards/rejected": rejected_P.sum(),
        "rewards/margins": (chosen_P - rejected_P).sum(),
        "rewards/accuracies": (chosen_P > rejected_P).sum(),
        **_log_p_sums(chosen, "chosen"),
        **_log_p_sums(rejected, "rejected"),
    }
    return total, sums


def _log_p_sums(answers: Answers, name: str) -> dict[str, Tensor]:
    return {
        f"logps/{name}": answers.log_p_S.detach().sum(),
        f"lengths/{name}": answers.lengths_S.sum(),
    }


class PairPreference(Objective):
    """A loss of preference pairs; the mean over the pairs of a step.

    Args:
        pair_loss: the loss.
        reference: reference log-probabilities of the training split's answers; None: the loss has
            no reference.
    """

    def __init__(self, pair_loss: PairLoss, reference: Reference | None) -> None:
        self.preference_loss, self.reference = pair_loss, reference

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Summed loss of the pairs.

        Further sums, under TRL's names: rewards, margins, accuracies, log-probabilities and lengths
        of chosen and rejected answers.
        """
        reference_S = None
        if self.reference is not None:
            pairs_P = batch.extras[EXAMPLES]
            answers_S = torch.stack((2 * pairs_P, 2 * pairs_P + 1), dim=1).flatten()
            reference_S = self.reference.of(TRAIN, answers_S)
        segments = Segments.of(batch)
        answers = answers_of(model, segments, reference_S, compiled=self.compiled)
        return pair_sums(self.preference_loss, answers)

    def denominator(self, batches: Sequence[Batch]) -> float:
        """Number of pairs."""
        return float(sum(len(batch.extras[EXAMPLES]) for batch in batches))

    def describe(self) -> dict[str, Any]:
        """The loss and its settings."""
        return {"name": "preference", **dataclasses.asdict(self.preference_loss)}


class UnpairedPreference(Objective):
    """KTO: answers that are desirable or not; the mean over the answers of a step.

    The baseline is the paper's estimate of the KL divergence: the mean log-probability ratio, over
    a step, of answers to other prompts, at least 0. It belongs to the step, so that the gradient
    does not depend on the size of micro-batches.

    Args:
        kto: the loss of an answer.
        reference: reference log-probabilities, of the answers and of the mismatched ones.
        desirable: whether each answer is desirable.
        mismatched: for each answer, its prompt with an answer to another prompt.
    """

    def __init__(
        self,
        kto: KTOLoss,
        reference: Reference,
        desirable: Sequence[bool],
        mismatched: Sequence[Rendered],
    ) -> None:
        self.preference_loss, self.reference, self.mismatched = kto, reference, mismatched
        self._desirable = torch.tensor(desirable)
        self._baseline = torch.zeros((), dtype=torch.float64)
        self._shares = (0.0, 0.0)

    def begin_step(self, model: Gemma, batches: Sequence[Batch]) -> None:
        """Estimates the baseline with the model as it is before the step."""
        device = model.norm.weight.device
        ratios, examples = [], torch.cat([batch.extras[EXAMPLES] for batch in batches])
        for batch in batches:
            indices = batch.extras[EXAMPLES]
            segments = Segments.of(packed([self.mismatched[i] for i in indices]).to(device))
            reference_S = self.reference.of(MISMATCHED, indices.to(device))
            # With gradients, as the reference was computed; see reference.py.
            with torch.enable_grad():
                answers = answers_of(model, segments, reference_S, compiled=self.compiled)
            ratios.append(answers.ratio_S.detach())
        self._baseline = torch.cat(ratios).mean().clamp(min=0)
        desirable_S = self._desirable[examples]
        self._shares = (desirable_S.double().mean().item(), (~desirable_S).double().mean().item())

    def loss(self, model: Gemma, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Summed loss of the answers.

        Further sums: the baseline as "kl", and as of pairs where "chosen" means desirable. They are
        scaled such that each is a mean over the desirable or the undesirable answers of the step.
        """
        indices = batch.extras[EXAMPLES]
        desirable_S = self._desirable.to(indices.device)[indices]
        reference_S = self.reference.of(TRAIN, indices)
        answers = answers_of(model, Segments.of(batch), reference_S, compiled=self.compiled)
        total = self.preference_loss.losses(answers, desirable_S, self._baseline).sum()
        sums = {"kl": self._baseline * len(indices)}
        rewards_S = self.preference_loss.rewards(answers).detach()
        values = {"rewards": rewards_S, "logps": answers.log_p_S.detach()}
        values["lengths"] = answers.lengths_S
        for name, share in zip(("chosen", "rejected"), self._shares, strict=True):
            rows_S = desirable_S if name == "chosen" else ~desirable_S
            for value, value_S in values.items():  # a step without such answers has no mean: NaN
                sums[f"{value}/{name}"] = value_S[rows_S].sum() / (share or torch.nan)
        sums["rewards/margins"] = sums["rewards/chosen"] - sums["rewards/rejected"]
        return total, sums

    def denominator(self, batches: Sequence[Batch]) -> float:
        """Number of answers."""
        return float(sum(len(batch.extras[EXAMPLES]) for batch in batches))

    def flops_per_token(self, model: Gemma, seq_len: int) -> float:
        """A training step, and a forward pass of the mismatched answers."""
        forward = model.config.forward_flops_per_token(seq_len)
        return super().flops_per_token(model, seq_len) + forward

    def describe(self) -> dict[str, Any]:
        """The loss and its settings."""
        return {"name": "preference", "method": "kto", **dataclasses.asdict(self.preference_loss)}
