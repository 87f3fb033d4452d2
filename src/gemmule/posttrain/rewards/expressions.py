"""Rewards for arithmetic expressions, read by a parser of their own and never by `eval`."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gemmule.errors import DataError
from gemmule.posttrain.rewards.record import expected

MAX_CHARS = 200  # of an expression; it bounds the parser's recursion and the size of its numbers
_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))", re.ASCII)
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", ":": "/"})


class ExpressionError(ValueError):
    """Text that is not an expression, or that divides by zero."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        value: its exact value.
        numbers: the whole numbers written in it, in order.
    """

    value: Fraction
    numbers: tuple[int, ...]


def countdown(answer: str, record: Mapping[str, Any]) -> float:
    """1 if the answer is an expression that reaches the target with the given numbers.

    The answer is one expression of + - * / and parentheses, on its last line; "= target" may follow
    it. Each given number is used at most once; with record["all"], exactly once.

    Args:
        answer: the model's answer.
        record: record["numbers"], a list of whole numbers, and record["target"].

    Raises:
        DataError: if the record lacks the numbers or the target.
    """
    numbers, target = expected(record, "numbers"), expected(record, "target")
    if not isinstance(numbers, list | tuple) or not all(isinstance(n, int) for n in numbers):
        raise DataError(f"numbers = {numbers!r}: a list of whole numbers is needed for countdown")
    lines = answer.strip().splitlines()
    left, equals, right = (lines[-1] if lines else "").partition("=")
    try:
        expression = parse(left)
        claimed = parse(right).value if equals else expression.value
    except ExpressionError:
        return 0.0
    used, given = Counter(expression.numbers), Counter(numbers)
    allowed = used == given if record.get("all") else used <= given
    return float(allowed and expression.value == claimed == target)


def parse(text: str) -> Expression:
    """Parses an expression of whole numbers, + - * / and parentheses, and computes its value.

    A minus may be a sign where a term may begin. The signs × · ÷ − mean what they look like.

    Raises:
        ExpressionError: for any other text, more than `MAX_CHARS` characters, or a division by 0.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"{len(text)} characters; at most {MAX_CHARS} are read")
    parser = _Parser(_tokens(text.translate(_SIGNS).strip()))
    value = parser.sum()
    if parser.next is not None:
        raise ExpressionError(f"{parser.next!r} was not expected")
    return Expression(value, tuple(parser.numbers))


def _tokens(text: str) -> list[str]:
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ExpressionError(f"{text[at]!r} does not belong in an expression")
        tokens.append(match[1] or match[2])
        at = match.end()
    return tokens


class _Parser:
    """Recursive descent: sum of products of signed atoms, from left to right."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self.numbers: list[int] = []

    @property
    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _take(self) -> str | None:
        token = self.next
        self._at += 1
        return token

    def sum(self) -> Fraction:
        value = self._product()
        while self.next in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            value += sign * self._product()
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self.next in ("*", "/"):
            if self._take() == "*":
                value *= self._signed()
                continue
            divisor = self._signed()
            if divisor == 0:
                raise ExpressionError("division by zero")
            value /= divisor
        return value

    def _signed(self) -> Fraction:
        if self.next == "-":
            self._take()
            return -self._signed()
        return self._atom()

    def _atom(self) -> Fraction:
        token = self._take()
        if token == "(":
            value = self.sum()
            if self._take() != ")":
                raise ExpressionError("a parenthesis is not closed")
            return value
        if token is None or not token.isdigit():
            raise ExpressionError(f"a number was expected, not {token!r}")
        self.numbers.append(int(token))
        return Fraction(int(token))
