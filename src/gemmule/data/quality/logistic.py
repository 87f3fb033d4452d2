"""Logistic regression on sparse features, to the minimum of a convex loss.

The loss is the mean log loss, both classes counting the same however many examples they have, plus
half the weights' squared length times the regularization. It has one minimum, so the result does
not depend on the order of the examples or on a seed. L-BFGS (Nocedal, Math. Comp. 35, 1980) with
backtracking finds it.

Shapes: D documents, W weights (the last one is the intercept).
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gemmule.data.quality.features import Features

Vector = npt.NDArray[np.float64]
Loss = Callable[[Vector], tuple[float, Vector]]

_MEMORY = 10
_STEPS = 200
_SMALL = 1e-5  # largest entry of the gradient at the minimum


def regression(
    features: Features, good_D: npt.NDArray[np.bool_], buckets: int, regularization: float
) -> Vector:
    """The weights [W] of buckets and the intercept.

    Args:
        features: features of D documents.
        good_D: which of them are good; some must be and some not.
        buckets: number of buckets.
        regularization: factor of the weights' squared length.
    """
    # Buckets that no example has keep a weight of 0.
    used, places_K = np.unique(features.buckets_K, return_inverse=True)
    features = dataclasses.replace(features, buckets_K=places_K.astype(np.int32))
    signs_D = np.where(good_D, 1.0, -1.0)
    shares_D = 0.5 / np.where(good_D, good_D.sum(), (~good_D).sum())

    def loss(weights_W: Vector) -> tuple[float, Vector]:
        margins_D = signs_D * (features.sums(weights_W[:-1]) + weights_W[-1])
        value = (shares_D * np.logaddexp(0.0, -margins_D)).sum()
        value += 0.5 * regularization * (weights_W[:-1] ** 2).sum()
        slopes_D = -signs_D * shares_D * sigmoid(-margins_D)
        gradient_W = np.append(features.spread(slopes_D, len(used)), slopes_D.sum())
        gradient_W[:-1] += regularization * weights_W[:-1]
        return float(value), gradient_W

    least_W = minimum(loss, np.zeros(len(used) + 1))
    weights_W = np.zeros(buckets + 1)
    weights_W[used], weights_W[-1] = least_W[:-1], least_W[-1]
    return weights_W


def minimum(loss: Loss, start: Vector) -> Vector:
    """Where a smooth convex function is smallest, by L-BFGS.

    Args:
        loss: value and gradient at a place.
        start: where to begin.
    """
    place = start
    value, gradient = loss(place)
    pairs: list[tuple[Vector, Vector]] = []
    for _ in range(_STEPS):
        if np.abs(gradient).max() < _SMALL:
            break
        direction = -_newton(gradient, pairs)
        slope = (direction * gradient).sum()
        step = 1.0 if pairs else min(1.0, 1.0 / np.abs(gradient).sum())
        while True:
            new_place = place + step * direction
            new_value, new_gradient = loss(new_place)
            if new_value <= value + 1e-4 * step * slope:
                break
            step /= 2
            if step < 1e-12:  # as small as rounding lets it be
                return place
        moved, turned = new_place - place, new_gradient - gradient
        if (moved * turned).sum() > 0:
            pairs = [*pairs[1 - _MEMORY :], (moved, turned)]
        place, value, gradient = new_place, new_value, new_gradient
    return place


def _newton(gradient: Vector, pairs: list[tuple[Vector, Vector]]) -> Vector:
    """The gradient times the inverse curvature that the last steps have shown."""
    result = gradient.copy()
    factors = []
    for moved, turned in reversed(pairs):
        factor = (moved * result).sum() / (moved * turned).sum()
        result -= factor * turned
        factors.append(factor)
    if pairs:
        moved, turned = pairs[-1]
        result *= (moved * turned).sum() / (turned * turned).sum()
    for (moved, turned), factor in zip(pairs, reversed(factors), strict=True):
        result += moved * (factor - (turned * result).sum() / (moved * turned).sum())
    return result


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))
