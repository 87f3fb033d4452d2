"""Divergences between a student's distribution and its teacher's.

| kind | value, with p the student's and q the teacher's probabilities |
|---|---|
| cross_entropy | -sum q log p: the Gemma 2 report's objective (section 3) |
| forward_kl | sum q log(q / p): the same gradient; zero when the two are equal |
| reverse_kl | sum p log(p / q) |
| jsd | beta sum q log(q / m) + (1 - beta) sum p log(p / m), m = beta q + (1 - beta) p |
| skew_kl | sum q log(q / m), m = skew q + (1 - skew) p |
| skew_reverse_kl | sum p log(p / m), m = skew p + (1 - skew) q |

jsd is the generalized Jensen-Shannon divergence of arXiv 2306.13649, the skewed ones are those of
DistiLLM (arXiv 2402.03898). All are in nats; formulas.py computes them. This module does not import
torch, because settings are checked with it.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gemmule.errors import ConfigError

Kind = Literal["cross_entropy", "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
KINDS: tuple[str, ...] = typing.get_args(Kind)
# The divergences that have each parameter.
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "beta": ("jsd",),
    "skew": ("skew_kl", "skew_reverse_kl"),
}
SPARSE_KINDS = ("cross_entropy", "forward_kl")  # those that a few ids of the teacher suffice for


@dataclass(frozen=True)
class Divergence:
    """A divergence and its parameters.

    Attributes:
        kind: name in the module's table.
        beta: the teacher's fraction of the mixture in "jsd", between 0 and 1.
        skew: fraction of its own distribution in a skewed divergence's mixture, between 0 and 1.

    Raises:
        ConfigError: for an unknown kind, or a parameter outside (0, 1).
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
                    f"{name} = {getattr(self, name)} is not between 0 and 1: at the ends use "
                    "forward_kl or reverse_kl"
                )

    def parameter(self) -> dict[str, float]:
        """The parameter of the kind by name; empty for a kind without one."""
        return {
            name: getattr(self, name) for name, kinds in PARAMETERS.items() if self.kind in kinds
        }

    @property
    def mix(self) -> float:
        """The value of the parameter, or 0 for a kind without one."""
        return next(iter(self.parameter().values()), 0.0)


CROSS_ENTROPY = Divergence()


@dataclass(frozen=True)
class DistillationLoss:
    """The loss (1 - alpha) T^2 divergence(student, teacher) + alpha (-log P_student) of a token.

    Attributes:
        divergence: distance between the student's distribution and the teacher's.
        temperature: temperature T of both distributions.
        alpha: weight of the next-token loss, from 0 to 1.
    """

    divergence: Divergence = CROSS_ENTROPY
    temperature: float = 1.0
    alpha: float = 0.0


def check_sparse(divergence: Divergence) -> None:
    """Refuses a divergence that sparse targets do not allow.

    Raises:
        ConfigError: for all but cross-entropy and forward KL.
    """
    if divergence.kind not in SPARSE_KINDS:
        raise ConfigError(
            f"{divergence.kind} needs the teacher's whole distribution; with sparse targets there "
            f"are: {', '.join(SPARSE_KINDS)}"
        )
