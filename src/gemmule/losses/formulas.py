"""The divergences of divergences.py with their gradients, computed from two softmaxes.

Shapes: C tokens of one chunk, V vocabulary, R shards of a vocabulary (shard.py).
"""

import math
from typing import NamedTuple

from torch import Tensor

from gemmule.losses.chunked_head import total
from gemmule.losses.divergences import Kind

SMALLEST = 2.0**-126  # smallest normal fp32 number
CHAINED: tuple[Kind, ...] = ("cross_entropy", "forward_kl", "reverse_kl")  # see `chained`


class Distribution(NamedTuple):
    """A softmax: logits [C, V], their log-sum-exp [C, 1] and the probabilities [C, V]."""

    logits_CV: Tensor
    log_z_C1: Tensor
    p_CV: Tensor

    def log_p(self) -> Tensor:
        """Log-probabilities [C, V], finite even where a probability underflows in fp32."""
        return self.logits_CV - self.log_z_C1


def divergence_and_gradient(
    kind: Kind, mix: float, student: Distribution, teacher: Distribution
) -> tuple[Tensor, Tensor]:
    """Divergence of each token [C] and its gradient with respect to the student's logits [C, V].

    With u = dL/dp the gradient is p (u - sum p u), which does not change when a constant is added
    to u.
    """
    p, q = student.p_CV, teacher.p_CV
    if kind == "cross_entropy":
        return student.log_z_C1.squeeze(-1) - total(q * student.logits_CV), p - q
    if kind not in CHAINED:
        part, part_C, rest_C = mixture_sums(kind, mix, p, q)
        loss_C, grad = mixture_loss(kind, mix, part_C, rest_C), part - p * part_C[:, None]
        return loss_C, (1.0 - mix) * grad if kind == "jsd" else grad
    log_p, log_q = student.log_p(), teacher.log_p()
    if kind == "forward_kl":
        return total(q * (log_q - log_p)), p - q
    log_ratio = log_p - log_q
    loss_C = total(p * log_ratio)
    part = p * (log_ratio - loss_C[:, None])  # sums to 0 but for rounding, subtracted below
    return loss_C, part - p * total(part)[:, None]


def mixture_sums(kind: Kind, mix: float, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a divergence from a mixture of p and q is made of: p u [C, V], its sum, and another.

    The sums [C] are over the given columns, so that those of several shards of a vocabulary can be
    added. `mixture_loss` makes the divergence of them; the gradient is p u - p (sum p u), for jsd
    times 1 - mix.
    """
    fraction = mix if kind == "skew_reverse_kl" else 1.0 - mix  # of the student in the mixture
    m = fraction * p + (1.0 - fraction) * q
    m = m.clamp(min=SMALLEST)  # both may underflow
    if kind == "skew_kl":
        part = -(1.0 - mix) * (q / m) * p
        return part, total(part), total(q * _log(q / m))
    # The logarithm of a ratio, not a difference of logarithms: m is never far below p, and where it
    # is close to p the difference would be mostly rounding error.
    log_ratio = _log(p / m)
    # Adding a constant that makes u vanish where q does avoids cancellation.
    if kind == "jsd":
        part = p * (log_ratio + math.log(1.0 - mix))
        return part, total(part), total(q * _log(q / m))
    part = p * (log_ratio + (math.log(mix) + 1.0) - mix * (p / m))
    return part, total(part), total(p * log_ratio)


def mixture_loss(kind: Kind, mix: float, part_C: Tensor, rest_C: Tensor) -> Tensor:
    """The divergence [C] from the two sums of `mixture_sums` over the whole vocabulary."""
    if kind != "jsd":
        return rest_C
    return mix * rest_C + (1.0 - mix) * (part_C - math.log(1.0 - mix))


def chained(
    kind: Kind, log_p_RC: Tensor, log_q_RC: Tensor, within_RC: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Chain rule: a divergence over a vocabulary, from those within each of its R shards.

    A distribution is that of the shards, and within each shard one of its own. Cross-entropy and
    both KL divergences are the divergence between the shards' distributions plus the mean of those
    within the shards, by the probabilities w of the shards: the teacher's q, or for reverse KL the
    student's p. The gradient at a logit of shard r is w_r times the gradient within the shard, plus
    the gradient at the shard's log-sum-exp times the student's probability within the shard.

    Args:
        kind: one of CHAINED.
        log_p_RC: log-probability of each shard under the student, float64.
        log_q_RC: the same under the teacher.
        within_RC: divergence within each shard.

    Returns:
        The divergence [C], and for each shard [R, C] the factor of the gradient within it and the
        gradient at its log-sum-exp.
    """
    p_RC, q_RC = log_p_RC.exp(), log_q_RC.exp()
    if kind == "reverse_kl":
        each_RC = within_RC + (log_p_RC - log_q_RC)
        loss_C = (p_RC * each_RC).sum(0)
        return loss_C, p_RC, p_RC * (each_RC - loss_C)
    each_RC = within_RC - log_p_RC
    if kind == "forward_kl":
        each_RC = each_RC + log_q_RC
    return (q_RC * each_RC).sum(0), q_RC, p_RC - q_RC


def _log(ratio: Tensor) -> Tensor:
    """Logarithm that is finite at 0, so that 0 log 0 is 0."""
    return ratio.clamp(min=SMALLEST).log()
