"""Losses of answers that people preferred or not, as functions of log-probabilities.

    dpo     -log sigmoid(beta h)                     arXiv 2305.18290, equation 7
            with label smoothing e: -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), for
            pairs of which a part e is labeled the wrong way round (conservative DPO)
    ipo     (h / length - 1 / (2 beta))^2            arXiv 2310.12036, equation 17
    simpo   -log sigmoid(beta (m_w - m_l) - gamma)   arXiv 2405.14734, equation 6
    kto     w (1 - sigmoid(+-(beta r - z)))          arXiv 2402.01306, equation 8

where r = log pi(answer) - log pi_ref(answer), h = r of the chosen answer - r of the rejected one,
and m is the mean log-probability per token. In ipo each r is divided by its answer's length, as its
authors advise (and TRL does); its beta is the paper's tau.

Everything is float64: a difference of sums over hundreds of tokens is small against them.

Shapes: P pairs, S answers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PairMethod = Literal["dpo", "ipo", "simpo"]


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the answers of a batch.

    Attributes:
        log_p_S: summed log-probability of each answer's tokens under the policy, float64.
        reference_S: the same under the reference, float64, without gradient; zeros for a loss that
            has no reference.
        lengths_S: number of tokens of each answer, float64.
    """

    log_p_S: Tensor
    reference_S: Tensor
    lengths_S: Tensor

    @property
    def ratio_S(self) -> Tensor:
        """Log-probability ratio of policy and reference."""
        return self.log_p_S - self.reference_S

    def rows(self, index: slice) -> "Answers":
        """Some of the answers."""
        return Answers(self.log_p_S[index], self.reference_S[index], self.lengths_S[index])


@dataclass(frozen=True)
class PairLoss:
    """A loss of pairs of answers.

    Attributes:
        method: see the module.
        beta: strength of the tie to the reference; in simpo the scale of the rewards.
        label_smoothing: part of the pairs whose labels are assumed to be swapped (dpo, simpo).
        gamma: margin between the rewards of chosen and rejected answers (simpo).
    """

    method: PairMethod
    beta: float
    label_smoothing: float = 0.0
    gamma: float = 0.0

    def rewards(self, answers: Answers) -> Tensor:
        """The reward [S] that the policy implies for each answer."""
        match self.method:
            case "dpo":
                return self.beta * answers.ratio_S
            case "ipo":
                return self.beta * answers.ratio_S / answers.lengths_S
            case "simpo":
                return self.beta * answers.log_p_S / answers.lengths_S

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """The loss [P] of each pair."""
        margin_P = self.rewards(chosen) - self.rewards(rejected)
        if self.method == "ipo":
            return (margin_P / self.beta - 0.5 / self.beta).square()
        margin_P = margin_P - self.gamma
        smooth = self.label_smoothing
        return -(1 - smooth) * F.logsigmoid(margin_P) - smooth * F.logsigmoid(-margin_P)


@dataclass(frozen=True)
class KTOLoss:
    """The loss of single answers, each marked as desirable or not.

    Attributes:
        beta: strength of the tie to the reference.
        desirable_weight: weight of desirable answers.
        undesirable_weight: weight of undesirable ones.
    """

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def rewards(self, answers: Answers) -> Tensor:
        """The reward [S] that the policy implies for each answer."""
        return self.beta * answers.ratio_S

    def losses(self, answers: Answers, desirable_S: Tensor, baseline: Tensor) -> Tensor:
        """The loss [S] of each answer.

        Args:
            answers: log-probabilities.
            desirable_S: which answers are desirable, bool.
            baseline: estimate of KL(policy, reference), at least 0; it gets no gradient.
        """
        gain_S = self.rewards(answers) - self.beta * baseline.detach()
        return torch.where(
            desirable_S,
            self.desirable_weight * torch.sigmoid(-gain_S),
            self.undesirable_weight * torch.sigmoid(gain_S),
        )
