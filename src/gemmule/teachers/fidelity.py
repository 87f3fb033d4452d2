"""How far kept targets are from the distribution they were made of, token by token.

Two questions that must not be mixed up:

- Faithfulness: is what is stored what the teacher said? Compared with the same choice made anew.
- Truncation: what does learning from it instead of the whole distribution change? The gap in the
  loss, and in its gradient with respect to the student's logits, at a given student.

For samples the gap of one set of draws is noise. What counts is its mean over all sets: the squared
length of the gradient's bias is estimated without bias by taking off the square that new draws from
the same teacher have on average, and may so come out below zero.

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
    """Of each token, float64.

    Attributes:
        loss_C: forward KL by the targets minus forward KL of the whole distribution, nats.
        bias2_C: squared L2 norm of the gradient's expected difference; for samples an unbiased
            estimate.
        noise2_C: squared L2 norm expected of what is left, the gradient's noise: 0 unless sampled.
        full2_C: squared L2 norm of the whole distribution's gradient.
    """

    loss_C: Tensor
    bias2_C: Tensor
    noise2_C: Tensor
    full2_C: Tensor


def dense(targets: SparseTargets, vocab: int) -> Tensor:
    """Weights spread out over the vocabulary [C, V], float64."""
    weight_CV = torch.zeros(len(targets), vocab, dtype=torch.float64)
    return weight_CV.scatter_add_(1, targets.ids_NK, targets.weight_NK.double())


def distance(stored: SparseTargets, anew: SparseTargets, vocab: int) -> Tensor:
    """Total variation between two sets of targets [C]: half the summed difference."""
    gap_C = (dense(stored, vocab) - dense(anew, vocab)).abs().sum(-1)
    if stored.tail_N is not None and anew.tail_N is not None:
        gap_C = gap_C + (stored.tail_N - anew.tail_N).abs().double()
    return gap_C / 2


def truncation(
    targets: SparseTargets,
    p_CV: Tensor,
    q_CV: Tensor,
    redrawn: Sequence[SparseTargets] = (),
) -> Gap:
    """What the targets change for a student q, where the teacher says p; both at one temperature.

    Args:
        targets: of these tokens.
        p_CV: the teacher's probabilities, float64.
        q_CV: the student's.
        redrawn: for samples, other draws of the same kind from p, which show their noise.
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
    """Forward KL by the targets, and the squared length of their gradient's difference."""
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
