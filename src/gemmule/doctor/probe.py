"""Compares an implementation's logits with those of a correct one, and of one with a known bug.

Distances are the root mean square over the vocabulary, at the worst position. The tolerance is
measured, not chosen: the reference runs once in exact arithmetic and once with every intermediate
result rounded to the implementation's dtype.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gemmule.doctor.bugs import Bug
from gemmule.doctor.reference import HEALTHY, Numerics, Variant

NOISE_FACTOR = 4.0  # two summation orders differ by about 1 times the noise; this is far outside
MARGIN = 2.0  # a bug that moves logits by less than this many tolerances cannot be detected
# Noise of logits relative to their size, where exact arithmetic would take too long.
FLOAT32_NOISE = 2e-5

Expect = Callable[[Sequence[Variant], Numerics], list[Tensor]]


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square difference over the last dimension, at the worst position; inf for NaN.

    Args:
        a: [..., V].
        b: the same shape.
    """
    if a.numel() == 0:
        return math.inf  # nothing was measured
    result = (a.double() - b.double()).square().mean(-1).sqrt().max().item()
    return result if math.isfinite(result) else math.inf


class Probe:
    """One measurement of an implementation, next to the reference's results.

    Attributes:
        name: the weights that were measured, for the table.
        values: results of the implementation, [n, V] logits or [n, 1] log-probabilities.
        bugs: the bugs to tell apart.
        measures_effects: whether the effect of each bug is cheap enough to compute; if not, the
            probe can find a bug but not rule one out.
        pairs: whether to try pairs of bugs, of which there are over a hundred.
        suspects: bugs found elsewhere in the implementation, tried together before any other.
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
        """The same measurement with results of another part of the implementation."""
        return Probe(self.name, values, self._expect, self._numerics, self.bugs, pairs=False)

    def expected(self, variants: Sequence[Variant]) -> list[Tensor]:
        """Results of each variant in exact arithmetic."""
        new = [v for v in dict.fromkeys(variants) if v not in self._cache]
        if new:
            self._cache.update(zip(new, self._expect(new, self._numerics), strict=True))
        return [self._cache[v] for v in variants]

    @functools.cached_property
    def healthy(self) -> Tensor:
        """Results of a correct implementation."""
        return self.expected([HEALTHY])[0]

    def _noise(self, variant: Variant) -> float:
        exact = self.expected([variant])[0]
        n = self._numerics
        if n.activation == torch.float32 and n.compute == torch.float32:
            return FLOAT32_NOISE * exact.double().square().mean().sqrt().item()
        # fp32 implementations sum in fp32, which matters more than rounding each result.
        compute = torch.float32 if n.activation == torch.float32 else n.compute
        rounded = Numerics(compute, n.activation, rounded=True, angle=torch.float32)
        noise = distance(self._expect([variant], rounded)[0], exact)
        # On a few values the two passes may agree almost exactly by chance.
        return max(noise, torch.finfo(n.activation).eps * exact.double().abs().max().item() / 4)

    @functools.cached_property
    def tolerance(self) -> float:
        """Maximum distance of a correct implementation from `healthy`."""
        return NOISE_FACTOR * self._noise(HEALTHY)

    @functools.cached_property
    def error(self) -> float:
        """Distance of this implementation from `healthy`."""
        return distance(self.values, self.healthy)

    def effect(self, bug: Bug) -> float:
        """Distance that `bug` moves the results of a correct implementation."""
        return distance(self.expected([bug.variant])[0], self.healthy)

    @functools.cached_property
    def causes(self) -> tuple[Bug, ...] | None:
        """The bugs that explain the results: none, one or two; None if no known bug does."""
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
            # Bugs that more sensitive weights have shown need no clear lead here.
            lead = 1.0 if sets[nearest] == self.suspects else MARGIN
            if errors[nearest] <= min(allowed, self.error / lead):
                return sets[nearest]
        return None

    @property
    def own_tolerance(self) -> float:
        """Maximum distance of two passes of this implementation; a bug may amplify rounding."""
        if not self.causes:
            return self.tolerance
        return max(self.tolerance, NOISE_FACTOR * self._noise(_together(self.causes)))

    @property
    def unexplained(self) -> float:
        """Distance from the variant that the implementation was identified as."""
        return distance(self.values, self.expected([_together(self.causes or ())])[0])


def _together(bugs: Sequence[Bug]) -> Variant:
    return functools.reduce(Variant.plus, (bug.variant for bug in bugs), HEALTHY)
