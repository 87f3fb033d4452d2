"""Means over seeds with their 95% intervals (Student's t), and what may be said of them."""

import math
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.95


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean, half the width of its 95% interval (None for fewer than two values), and their number.

    The values are taken for independent draws of one normal distribution.
    """
    n = len(values)
    if n == 0:
        return {"mean": None, "half_width": None, "n": 0}
    mean = math.fsum(values) / n
    if n == 1:
        return {"mean": mean, "half_width": None, "n": 1}
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    return {"mean": mean, "half_width": t_quantile(n - 1) * math.sqrt(variance / n), "n": n}


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The t between whose negative and itself Student's distribution has the mass `confidence`.

    By bisection of the distribution's closed form for whole degrees of freedom (Abramowitz and
    Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, 1.0
    while _mass_within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if _mass_within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def _mass_within(t: float, degrees: int) -> float:
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0 if degrees == 1 else term
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def verdict(arm: str, baseline: str, gain: dict[str, Any], unit: str) -> str:
    """In words whether `arm` is better than `baseline`, from the summary of paired gains."""
    mean, half, n = gain["mean"], gain["half_width"], gain["n"]
    if mean is None:
        return f"{arm} against {baseline}: no seed has both"
    direction = "ahead of" if mean > 0 else "behind"
    if half is None:
        return f"{arm} {direction} {baseline} by {abs(mean):.3f} {unit} (one seed: no interval)"
    if abs(mean) <= half:
        return (
            f"{arm} against {baseline}: no difference seen ({mean:+.3f} ± {half:.3f} {unit}, "
            f"{n} seeds)"
        )
    return f"{arm} {direction} {baseline} by {abs(mean):.3f} ± {half:.3f} {unit} ({n} seeds)"
