"""Countdown: reach a target with given numbers and + - *."""

import random

from gemmule.posttrain.tasks.problem import Problem

_LARGEST_NUMBER = 20
_LARGEST_TARGET = 99


def countdown(rng: random.Random) -> Problem:
    """Draws a problem such as "Use 2, 3 and 7 to make 13.", which "2 * 3 + 7" solves.

    Three numbers of 1 to 20, each used exactly once; targets of 1 to 99. Many answers are right,
    and any of them is accepted. The order of the numbers does not make another problem.
    """
    while True:
        numbers = [rng.randint(1, _LARGEST_NUMBER) for _ in range(3)]
        expression, target = _random_expression(rng, numbers)
        if 1 <= target <= _LARGEST_TARGET:
            break
    shown = sorted(numbers)
    first, last = ", ".join(map(str, shown[:-1])), shown[-1]
    return Problem(
        f"Use {first} and {last} to make {target}.",
        expression,
        {"verifier": "countdown", "numbers": shown, "target": target, "all": True},
        f"{shown} {target}",
    )


def _random_expression(rng: random.Random, numbers: list[int]) -> tuple[str, int]:
    """An expression of the numbers in random order, and its value."""
    a, b, c = rng.sample(numbers, 3)
    first, second = rng.choice("+-*"), rng.choice("+-*")
    if rng.random() < 0.5:  # (a . b) . c
        inner, value = _join(str(a), a, first, str(b), b)
        if first != "*" and second == "*":
            inner = f"({inner})"
        return _join(inner, value, second, str(c), c)
    inner, value = _join(str(b), b, second, str(c), c)
    if (first == "-" and second != "*") or (first == "*" and second != "*"):
        inner = f"({inner})"
    return _join(str(a), a, first, inner, value)


def _join(left: str, a: int, sign: str, right: str, b: int) -> tuple[str, int]:
    value = {"+": a + b, "-": a - b, "*": a * b}[sign]
    return f"{left} {sign} {right}", value
