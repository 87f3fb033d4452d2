"""Which measure of how far a student's distribution is from its teacher's.

| kind | value, with p the student's and q the teacher's probabilities |
|---|---|
| cross_entropy | -sum q log p: the Gemma 2 report's objective (section 3) |
| forward_kl | sum q log(q / p): the same gradient; zero when there is nothing left to learn |
| reverse_kl | sum p log(p / q) |
| jsd | beta sum q log(q / m) + (1 - beta) sum p log(p / m), m = beta q + (1 - beta) p |
| skew_kl | sum q log(q / m), m = skew q + (1 - skew) p |
| skew_reverse_kl | sum p log(p / m), m = skew p + (1 - skew) q |

jsd is the generalised Jensen-Shannon divergence of arXiv 2306.13649, the skewed ones are those of
DistiLLM (arXiv 2402.03898). All are in nats; formulas.py computes them. Settings are checked with
this module, so it does without torch.
"""

import typing
from dataclasses import dataclass
from typing import Literal

from gemmule.errors import ConfigError

Kind = Literal["cross_entropy", "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"]
KINDS: tuple[str, ...] = typing.get_args(Kind)


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
