"""The divergences of divergences.py with their gradients, computed from two softmaxes.

Shapes: C tokens of one chunk, V vocabulary.
"""

import math
from typing import NamedTuple

from torch import Tensor

from gemmule.losses.chunked_head import total
from gemmule.losses.divergences import Kind

SMALLEST = 2.0**-126  # smallest normal fp32 number


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
    log_p, log_q = student.log_p(), teacher.log_p()
    if kind == "forward_kl":
        return total(q * (log_q - log_p)), p - q
    if kind == "reverse_kl":
        log_ratio = log_p - log_q
        loss_C = total(p * log_ratio)
        part = p * (log_ratio - loss_C[:, None])  # sums to 0 but for rounding, subtracted below
        return loss_C, part - p * total(part)[:, None]
    fraction = mix if kind == "skew_reverse_kl" else 1.0 - mix  # of the student in the mixture
    m = fraction * p + (1.0 - fraction) * q
    m = m.clamp(min=SMALLEST)  # both may underflow
    if kind == "skew_kl":
        part = -(1.0 - mix) * (q / m) * p
        return total(q * _log(q / m)), part - p * total(part)[:, None]
    # The logarithm of a ratio, not a difference of logarithms: m is never far below p, and where it
    # is close to p the difference would be mostly rounding error.
    log_ratio = _log(p / m)
    # Adding a constant that makes u vanish where q does avoids cancellation.
    if kind == "jsd":
        offset = math.log(1.0 - mix)
        part = p * (log_ratio + offset)
        total_C = total(part)
        loss_C = mix * total(q * _log(q / m)) + (1.0 - mix) * (total_C - offset)
        return loss_C, (1.0 - mix) * (part - p * total_C[:, None])
    part = p * (log_ratio + (math.log(mix) + 1.0) - mix * (p / m))
    return total(p * log_ratio), part - p * total(part)[:, None]


def _log(ratio: Tensor) -> Tensor:
    """Logarithm that is finite at 0, so that 0 log 0 is 0."""
    return ratio.clamp(min=SMALLEST).log()
