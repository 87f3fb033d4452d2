"""The distance of kept targets from the distribution they were taken from, token by token.

Two separate questions:

- Faithfulness: does the store contain the teacher's predictions? They are compared with the same
  choice from predictions that are computed again.
- Truncation: what changes when a student learns from the targets instead of the full distribution?
  The gap in the loss, and in its gradient with respect to the student's logits, at a given student.

For samples the gap of one set of draws is noise; what counts is its mean over all sets. The squared
length of the gradient's bias is estimated without bias: the mean square for new draws from the same
teacher is subtracted, so that an estimate can be negative.

Shapes: C tokens, K kept ids, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmule.losses.sparse_targets import SparseTargets

TINY = 1e-30


@dataclass(frozen=True)
class Gap:
    """The gap of each token, float64.

    Attributes:
        loss_C: forward KL computed from the targets minus that of the full distribution, nats.
        bias2_C: squared L2 norm of the expected difference of the gradient; for samples an unbiased
            estimate.
        noise2_C: expected squared L2 norm of the rest, the gradient's noise; 0 unless sampled.
        full2_C: squared L2 norm of the full distribution's gradient.
    """

    loss_C: Tensor
    bias2_C: Tensor
    noise2_C: Tensor
    full2_C: Tensor


def dense(targets: SparseTargets, vocab_size: int) -> Tensor:
    """Weights of all ids of the vocabulary [C, V], float64."""
    weight_CV = torch.zeros(len(targets), vocab_size, dtype=torch.float64)
    return weight_CV.scatter_add_(1, targets.ids_NK, targets.weight_NK.double())


def distance(stored: SparseTargets, repeated: SparseTargets, vocab_size: int) -> Tensor:
    """Total variation distance between two sets of targets [C]: half the summed difference."""
    gap_C = (dense(stored, vocab_size) - dense(repeated, vocab_size)).abs().sum(-1)
    if stored.tail_N is not None and repeated.tail_N is not None:
        gap_C = gap_C + (stored.tail_N - repeated.tail_N).abs().double()
    return gap_C / 2


def truncation(
    targets: SparseTargets,
    p_CV: Tensor,
    q_CV: Tensor,
    redrawn: Sequence[SparseTargets] = (),
) -> Gap:
    """The gap for a student q when targets replace the teacher's distribution p.

    Args:
        targets: targets of the tokens.
        p_CV: the teacher's probabilities, float64.
        q_CV: the student's probabilities at the same temperature.
        redrawn: for samples, other draws of the same kind from p, which measure the noise.
    """
    log_q_CV = q_CV.clamp(min=TINY).log()
    full_C = (torch.special.entr(p_CV) + p_CV * log_q_CV).sum(-1).neg()
    kl_C, gap2_C = _kl_and_gap2(targets, p_CV, q_CV, log_q_CV)
    noise2_C = torch.zeros_like(gap2_C)
    for others in redrawn:
        noise2_C += _kl_and_gap2(others, p_CV, q_CV, log_q_CV)[1] / len(redrawn)
    return Gap(kl_C - full_C, gap2_C - noise2_C, noise2_C, ((q_CV - p_CV) ** 2).sum(-1))


def _kl_and_gap2(
    targets: SparseTargets, p_CV: Tensor, q_CV: Tensor, log_q_CV: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward KL computed from the targets, and squared norm of the gradient's difference [C]."""
    weight_CV = dense(targets, p_CV.shape[1])
    kl_C = -(weight_CV * log_q_CV).sum(-1) - targets.entropy_N.double()
    off_CV = p_CV - weight_CV + (weight_CV.sum(-1, keepdim=True) - 1.0) * q_CV
    if targets.tail_N is not None:
        tail_C1 = targets.tail_N.double()[:, None]
        outside_CV = torch.where(weight_CV > 0, 0.0, q_CV)
        mass_C1 = outside_CV.sum(-1, keepdim=True).clamp(min=TINY)
        kl_C = kl_C - (tail_C1 * mass_C1.log()).squeeze(1)
        off_CV = off_CV + tail_C1 * (q_CV - outside_CV / mass_C1)
    return kl_C, (off_CV**2).sum(-1)
