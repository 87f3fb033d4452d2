"""How much of each task vector a merge takes: WARP's closed forms, on vectors in the plane."""

import math
import random

import pytest

from gemmule.errors import ConfigError
from gemmule.posttrain.merging.coefficients import (
    Gram,
    Method,
    angles,
    checked_method,
    coefficients,
    norm,
    normalized,
)

Vector = tuple[float, ...]


def gram_of(*vectors: Vector) -> Gram:
    return [[math.fsum(x * y for x, y in zip(a, b, strict=True)) for b in vectors] for a in vectors]


def combined(c: list[float], *vectors: Vector) -> Vector:
    columns = zip(*vectors, strict=True)
    return tuple(math.fsum(w * x for w, x in zip(c, column, strict=True)) for column in columns)


def plain_slerp(a: Vector, b: Vector, part: float) -> Vector:
    """WARP, equation 3, on the vectors themselves."""
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
    angle = math.acos(cosine)
    one, two = (math.sin(x * angle) / math.sin(angle) for x in (1 - part, part))
    return tuple(one * x + two * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("degrees", [0.001, 1, 37, 90, 135, 179])
def test_slerp_keeps_equal_norms_and_lerp_shortens_them(degrees: float) -> None:
    """Lemma 1 of WARP."""
    length, angle = 2.5, math.radians(degrees)
    gram = gram_of((length, 0.0), (length * math.cos(angle), length * math.sin(angle)))
    for part in (0.1, 0.5, 0.9):
        slerp = coefficients("slerp", gram, [1 - part, part])
        assert norm(slerp, gram) == pytest.approx(length, rel=1e-9)
        lerp = coefficients("lerp", gram, [1 - part, part])
        shrink = math.sqrt(1 - 2 * (1 - math.cos(angle)) * (part - part**2))
        assert norm(lerp, gram) == pytest.approx(length * shrink, rel=1e-9)


def test_slerp_of_orthogonal_vectors_at_the_middle() -> None:
    assert coefficients("slerp", gram_of((1, 0), (0, 1)), [0.5, 0.5]) == pytest.approx(
        [math.sqrt(0.5)] * 2
    )


def test_more_than_two_are_merged_by_the_recurrence() -> None:
    """theta^M = slerp(theta_0, theta^(M-1), theta_M, 1 / M), appendix of WARP."""
    pick = random.Random(3)
    vectors = [tuple(pick.gauss(0, 1) for _ in range(6)) for _ in range(4)]
    expected = vectors[0]
    for m, vector in enumerate(vectors[1:], 2):
        expected = plain_slerp(expected, vector, 1 / m)
    c = coefficients("slerp", gram_of(*vectors), [0.25] * 4)
    assert combined(c, *vectors) == pytest.approx(expected, rel=1e-12)
    other = coefficients("slerp", gram_of(*vectors[::-1]), [0.25] * 4)
    assert combined(other, *vectors[::-1]) != pytest.approx(expected, rel=1e-3)  # order counts


@pytest.mark.parametrize("method", ["average", "lerp", "slerp"])
def test_equal_vectors_merge_into_themselves(method: Method) -> None:
    a = (0.3, -1.7, 4.0)
    c = coefficients(method, gram_of(a, a, a), [1 / 3] * 3)
    assert combined(c, a, a, a) == pytest.approx(a, rel=1e-12)


def test_a_layer_that_one_run_left_as_it_was() -> None:
    gram = gram_of((0.0, 0.0), (3.0, 4.0))
    assert coefficients("slerp", gram, [0.5, 0.5]) == [0.5, 0.5]
    assert angles(gram) == [[0.0, None], [None, 0.0]]


def test_opposite_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"opposite directions.*use lerp"):
        coefficients("slerp", gram_of((1.0, 2.0), (-1.0, -2.0)), [0.5, 0.5])


def test_angles_in_degrees() -> None:
    found = angles(gram_of((1, 0), (1, 1), (0, 2)))
    assert [found[0][1], found[0][2], found[1][2]] == pytest.approx([45, 90, 45])


def test_weights() -> None:
    assert normalized(None, 4) == [0.25] * 4
    assert normalized([1, 3], 2) == [0.25, 0.75]
    with pytest.raises(ConfigError, match="there are 3 weights for 2 models"):
        normalized([1, 1, 1], 2)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="each must be above 0"):
            normalized([1.0, bad], 2)
    with pytest.raises(ConfigError, match=r"unknown method 'slurp'; did you mean 'slerp'\?"):
        checked_method("slurp")
