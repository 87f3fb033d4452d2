"""How far a student's distribution is from its teacher's, and the gradient of that.

| kind | value, with p the student's and q the teacher's probabilities |
|---|---|
| cross_entropy | -sum q log p: the Gemma 2 report's objective (section 3) |
| forward_kl | sum q log(q / p): the same gradient; zero when there is nothing left to learn |
| reverse_kl | sum p log(p / q) |
| jsd | beta sum q log(q / m) + (1 - beta) sum p log(p / m), m = beta q + (1 - beta) p |
| skew_kl | sum q log(q / m), m = skew q + (1 - skew) p |
| skew_reverse_kl | sum p log(p / m), m = skew p + (1 - skew) q |

jsd is the generalised Jensen-Shannon divergence of arXiv 2306.13649, the skewed ones are those of
DistiLLM (arXiv 2402.03898). All are in nats. Settings are checked with this module, so it does
without importing torch.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from gemmule.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["cross_entropy", "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
KINDS: tuple[str, ...] = typing.get_args(Kind)
SMALLEST = 2.0**-126  # positive fp32 number with all its digits


@dataclass(frozen=True)
class Divergence:
    """Which divergence, and its parameters.

    Attributes:
        kind: see the module's table.
        beta: the teacher's share in the mixture of "jsd", between 0 and 1.
        skew: share of the distribution that is not replaced in the skewed ones' mixture.

    Raises:
        ConfigError: for another kind, or a parameter that is not inside (0, 1).
    """

    kind: Kind = "cross_entropy"
    beta: float = 0.5
    skew: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"no divergence {self.kind!r}; there are: {', '.join(KINDS)}")
        for name in ("beta", "skew"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} = {getattr(self, name)} is not between 0 and 1: at the ends take "
                    "forward_kl or reverse_kl"
                )

    def parameter(self) -> dict[str, float]:
        """The one parameter that the kind has, by name; empty for those without."""
        if self.kind == "jsd":
            return {"beta": self.beta}
        return {"skew": self.skew} if self.kind.startswith("skew") else {}

    @property
    def mix(self) -> float:
        """The value of that parameter, or 0."""
        return next(iter(self.parameter().values()), 0.0)


CROSS_ENTROPY = Divergence()


class Distribution(NamedTuple):
    """A softmax: logits [C, V], their log-sum-exp [C, 1], probabilities [C, V]."""

    logits_CV: Tensor
    log_z_C1: Tensor
    p_CV: Tensor

    def log_p(self) -> Tensor:
        """Log-probabilities [C, V]: finite even where a probability is too small for fp32."""
        return self.logits_CV - self.log_z_C1


def divergence_and_gradient(
    kind: Kind, mix: float, student: Distribution, teacher: Distribution
) -> tuple[Tensor, Tensor]:
    """Divergence of each token [C], and its gradient with respect to the student's logits [C, V].

    With u = dL/dp, the gradient is p (u - sum p u); a constant added to u changes nothing.
    """
    p, q = student.p_CV, teacher.p_CV
    if kind == "cross_entropy":
        return student.log_z_C1.squeeze(-1) - (q * student.logits_CV).sum(-1), p - q
    log_p, log_q = student.log_p(), teacher.log_p()
    if kind == "forward_kl":
        return (q * (log_q - log_p)).sum(-1), p - q
    if kind == "reverse_kl":
        part = p * (log_p - log_q)
        total = part.sum(-1, keepdim=True)
        return total.squeeze(-1), part - p * total
    student_share = mix if kind == "skew_reverse_kl" else 1.0 - mix
    m = student_share * p + (1.0 - student_share) * q
    m = m.clamp(min=SMALLEST)  # both may be too small for fp32
    if kind == "skew_kl":
        part = -(1.0 - mix) * (q / m) * p
        return (q * _log(q / m)).sum(-1), part - p * part.sum(-1, keepdim=True)
    # Logarithms of ratios, not differences of logarithms: m is never far below p, and where it is
    # nearly p the difference would be mostly rounding.
    log_ratio = _log(p / m)
    part = p * log_ratio
    total = part.sum(-1, keepdim=True)
    if kind == "jsd":
        other = (q * _log(q / m)).sum(-1)
        return mix * other + (1.0 - mix) * total.squeeze(-1), (1.0 - mix) * (part - p * total)
    # log(p / m) - mix p / m, but for a constant that makes it vanish where q does.
    part = p * (log_ratio + (math.log(mix) + 1.0) - mix * (p / m))
    return total.squeeze(-1), part - p * part.sum(-1, keepdim=True)


def _log(ratio: Tensor) -> Tensor:
    """Finite at 0, so that 0 log 0 is 0."""
    return ratio.clamp(min=SMALLEST).log()
