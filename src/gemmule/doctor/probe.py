"""Comparing what a stack computes with what a healthy one, and one with a known bug, would.

Distances are the root mean square over the vocabulary, at the worst position. What a stack may
differ by is measured, not chosen: the reference runs once in exact arithmetic and once rounding
every intermediate result as the stack's dtype does.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gemmule.doctor.bugs import Bug
from gemmule.doctor.reference import HEALTHY, Numerics, Variant

NOISE_FACTOR = 4.0  # two orders of the same sums differ about once the noise; this is far outside
MARGIN = 2.0  # a bug that moves logits by less than this many tolerances cannot be told from none
# The noise floor of logits, relative to their size, when exact arithmetic would take too long.
FLOAT32_NOISE = 2e-5

Expect = Callable[[Sequence[Variant], Numerics], list[Tensor]]


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square difference over the last dimension, at the worst place; NaN counts as inf.

    Args:
        a: [..., V].
        b: the same shape.
    """
    if a.numel() == 0:
        return math.inf  # nothing was measured, so nothing is known to agree
    found = (a.double() - b.double()).square().mean(-1).sqrt().max().item()
    return found if math.isfinite(found) else math.inf


class Probe:
    """One measurement of a stack, and the reference's answer to the same question.

    Attributes:
        name: which weights were measured, for the table.
        values: what the stack said, [n, V] logits or [n, 1] log-probabilities.
        bugs: the mistakes to tell apart.
        measures_effects: computing what each bug would do is cheap enough to do it always; if
            not, the probe can find a bug and never rule one out.
        pairs: two bugs at once may be tried; there are over a hundred pairs.
        suspects: bugs found elsewhere in the stack, tried together before any other.
    """

    def __init__(
        self,
        name: str,
        values: Tensor,
        expect: Expect,
        numerics: Numerics,
        bugs: Sequence[Bug],
        measures_effects: bool = True,
        pairs: bool = True,
        suspects: Sequence[Bug] = (),
    ) -> None:
        self.name, self.values, self.bugs = name, values, tuple(bugs)
        self.measures_effects, self.pairs = measures_effects, pairs
        self.suspects = tuple(suspects)
        self._expect, self._numerics = expect, numerics
        self._cache: dict[Variant, Tensor] = {}

    def with_values(self, values: Tensor) -> "Probe":
        """The same question, answered by another part of the stack."""
        return Probe(self.name, values, self._expect, self._numerics, self.bugs, pairs=False)

    def expected(self, variants: Sequence[Variant]) -> list[Tensor]:
        """What a stack of each variant would have said, in exact arithmetic."""
        new = [v for v in dict.fromkeys(variants) if v not in self._cache]
        if new:
            self._cache.update(zip(new, self._expect(new, self._numerics), strict=True))
        return [self._cache[v] for v in variants]

    @functools.cached_property
    def healthy(self) -> Tensor:
        """What a healthy stack would have said."""
        return self.expected([HEALTHY])[0]

    def _noise(self, variant: Variant) -> float:
        exact = self.expected([variant])[0]
        n = self._numerics
        if n.activation == torch.float32 and n.compute == torch.float32:
            return FLOAT32_NOISE * exact.double().square().mean().sqrt().item()
        # fp32 stacks sum in fp32, which matters more than the rounding of each result.
        compute = torch.float32 if n.activation == torch.float32 else n.compute
        rounded = Numerics(compute, n.activation, rounded=True, angle=torch.float32)
        noise = distance(self._expect([variant], rounded)[0], exact)
        # An all but exact agreement of the two passes on a few values would be luck.
        return max(noise, torch.finfo(n.activation).eps * exact.double().abs().max().item() / 4)

    @functools.cached_property
    def tolerance(self) -> float:
        """How far a healthy stack may be from `healthy`."""
        return NOISE_FACTOR * self._noise(HEALTHY)

    @functools.cached_property
    def error(self) -> float:
        """How far this one is."""
        return distance(self.values, self.healthy)

    def effect(self, bug: Bug) -> float:
        """How far `bug` would have moved what a healthy stack says."""
        return distance(self.expected([bug.variant])[0], self.healthy)

    @functools.cached_property
    def causes(self) -> tuple[Bug, ...] | None:
        """The bugs that explain the stack's answers: none, one or two; None: nothing known does."""
        if self.error <= self.tolerance:
            return ()  # the usual case, found before any variant is computed
        if math.isinf(self.error):
            return None
        groups = [[self.suspects]] if self.suspects else []
        for size in (1, 2) if self.pairs else (1,):
            groups.append(list(itertools.combinations(self.bugs, size)))
        for sets in groups:
            variants = [_together(bugs) for bugs in sets]
            errors = [distance(self.values, e) for e in self.expected(variants)]
            nearest = min(range(len(sets)), key=errors.__getitem__)
            allowed = max(self.tolerance, NOISE_FACTOR * self._noise(variants[nearest]))
            # What was established on sharper weights needs no clear lead here.
            lead = 1.0 if sets[nearest] == self.suspects else MARGIN
            if errors[nearest] <= min(allowed, self.error / lead):
                return sets[nearest]
        return None

    @property
    def own_tolerance(self) -> float:
        """How far two passes of this very stack may be apart; a bug may let rounding grow."""
        if not self.causes:
            return self.tolerance
        return max(self.tolerance, NOISE_FACTOR * self._noise(_together(self.causes)))

    @property
    def unexplained(self) -> float:
        """How far the stack is from what it was found to be: healthy, or with its bugs."""
        return distance(self.values, self.expected([_together(self.causes or ())])[0])


def _together(bugs: Sequence[Bug]) -> Variant:
    return functools.reduce(Variant.plus, (bug.variant for bug in bugs), HEALTHY)
