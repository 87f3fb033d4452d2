"""Sums, differences and products of whole numbers."""

import random
from collections.abc import Callable

from gemmule.posttrain.tasks.problem import Problem

_RESULT: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def arithmetic(rng: random.Random) -> Problem:
    """Draws a problem such as "37 + 5 =", whose answer is "42".

    Operands have 1 to 3 digits, each length as often as the others, so that short ones are not
    lost among the long. A difference is never negative; the second factor of a product has one
    digit. a + b and b + a are one problem.
    """
    sign = rng.choice("+-*")
    a, b = _operand(rng, 3), _operand(rng, 1 if sign == "*" else 3)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    key = f"{a}-{b}" if sign == "-" else f"{min(a, b)}{sign}{max(a, b)}"
    return problem(a, sign, b, key)


def problem(a: int, sign: str, b: int, key: str) -> Problem:
    """The problem `a sign b =`.

    Args:
        a: first operand.
        sign: "+", "-" or "*".
        b: second operand.
        key: as in `Problem.key`.
    """
    result = str(_RESULT[sign](a, b))
    return Problem(f"{a} {sign} {b} =", result, {"verifier": "number", "answer": result}, key)


def _operand(rng: random.Random, max_digits: int) -> int:
    digits = rng.randint(1, max_digits)
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
