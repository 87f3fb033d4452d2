"""How much of each task vector a merge takes, from the vectors' inner products alone.

A task vector is delta_m = theta_m - theta_0, with theta_0 the model that all of them started from.
Every merge here is theta_0 + sum_m c_m delta_m, layer by layer:

    average   c_m = 1 / M
    lerp      c_m = w_m, weights that add up to 1
    slerp     of two: c = sin((1 - l) O) / sin O, sin(l O) / sin O, where O is the angle between
              them; of more: slerp of the first M - 1 with the last at l = 1 / M

from WARP, arXiv 2406.16768, equations 3 and 6 and section 3.2. SLERP of vectors of equal norm keeps
that norm, where an average of orthogonal ones shortens it by the root of 2 (lemma 1). LITI then
scales all of them by eta, which is the way from theta_0 to the merge.

With weights, slerp uses l = w_M / (w_1 + ... + w_M), which is 1 / M if they are equal.
"""

import math
from collections.abc import Sequence
from typing import Literal

from gemmule.config import nearest
from gemmule.errors import ConfigError

Method = Literal["average", "lerp", "slerp"]
METHODS: tuple[Method, ...] = ("average", "lerp", "slerp")
Gram = Sequence[Sequence[float]]  # [M, M], inner products of task vectors

_SAME = 1e-6  # radians, below which SLERP is LERP to within rounding


def checked_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: when there is none.
    """
    for method in METHODS:
        if method == name:
            return method
    raise ConfigError(f"unknown method {name!r}; {nearest(name, list(METHODS))}")


def normalized(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights that add up to 1; None: equal ones.

    Raises:
        ConfigError: for another number than `count`, or one that is not above 0.
    """
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise ConfigError(f"there are {len(weights)} weights for {count} models: give one for each")
    if not all(math.isfinite(w) and w > 0 for w in weights):
        raise ConfigError(
            f"the weights are {', '.join(f'{w:g}' for w in weights)}: each must be above 0 (leave "
            "a model out to give it no weight)"
        )
    total = math.fsum(weights)
    return [w / total for w in weights]


def coefficients(method: Method, gram: Gram, weights: Sequence[float]) -> list[float]:
    """The coefficient of each task vector.

    Args:
        method: "average" and "lerp" take the weights as they are.
        gram: inner products of the task vectors of a layer.
        weights: a weight for each vector; they add up to 1.

    Raises:
        ConfigError: for SLERP of two vectors that point in opposite directions.
    """
    if method != "slerp":
        return list(weights)
    result = [1.0]
    for m in range(1, len(weights)):
        part = weights[m] / math.fsum(weights[: m + 1])
        before, own = _slerp(_angle_to(result, gram, m), part)
        result = [c * before for c in result] + [own]
    return result


def angles(gram: Gram) -> list[list[float | None]]:
    """Angles between the vectors in degrees, [M, M]; None where one has no length."""
    size = range(len(gram))
    return [
        [_degrees(_angle(gram[i][j], gram[i][i], gram[j][j])) if i != j else 0.0 for j in size]
        for i in size
    ]


def norm(coefficients: Sequence[float], gram: Gram) -> float:
    """The length of a combination of the vectors."""
    return math.sqrt(max(0.0, _square(coefficients, gram)))


def _square(c: Sequence[float], gram: Gram) -> float:
    return math.fsum(a * b * gram[i][j] for i, a in enumerate(c) for j, b in enumerate(c))


def _angle_to(merged: Sequence[float], gram: Gram, m: int) -> float | None:
    dot = math.fsum(c * gram[i][m] for i, c in enumerate(merged))
    return _angle(dot, _square(merged, gram), gram[m][m])


def _angle(dot: float, a: float, b: float) -> float | None:
    """The angle in radians, from an inner product and two squared norms."""
    if a <= 0 or b <= 0:
        return None
    return math.acos(min(1.0, max(-1.0, dot / math.sqrt(a) / math.sqrt(b))))


def _slerp(angle: float | None, part: float) -> tuple[float, float]:
    if angle is None or angle < _SAME:  # a layer that one run left as it was, or equal vectors
        return 1 - part, part
    if math.pi - angle < _SAME:
        raise ConfigError(
            "two task vectors of a layer point in opposite directions, and SLERP has no way "
            "between those: use lerp"
        )
    whole = math.sin(angle)
    return math.sin((1 - part) * angle) / whole, math.sin(part * angle) / whole


def _degrees(angle: float | None) -> float | None:
    return None if angle is None else math.degrees(angle)
