"""Rewards for answers that end in a number."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from gemmule.errors import DataError
from gemmule.posttrain.rewards.record import expected

# Commas group digits by three, a period needs digits after it (it may end a sentence), and a slash
# makes a fraction. A minus is a sign unless something that can be subtracted from is before it.
_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?:/\d+)?"
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-\u2212])?{_UNSIGNED}", re.ASCII)
_MAX_DIGITS = 100  # of one number: an answer of digits only costs nothing to refuse


def number(answer: str, record: Mapping[str, Any]) -> float:
    """1 if the last number of the answer equals record["answer"] exactly, otherwise 0.

    Numbers are compared as fractions: 0.5, .50 and 1/2 are equal, and so are 1,000 and 1000. Only
    the last one counts, so listing many candidates does not help.

    Args:
        answer: the model's answer.
        record: record["answer"] is a number, or text with one; record["tolerance"], if present, is
            the largest difference that is accepted.

    Raises:
        DataError: if the record has no number to compare with.
    """
    target = last_number(str(expected(record, "answer")))
    if target is None:
        raise DataError(
            f"the reference answer {record['answer']!r} holds no number: give one, or choose the "
            "reward exact"
        )
    value = last_number(answer)
    if value is None:
        return 0.0
    tolerance = last_number(str(record.get("tolerance", 0))) or Fraction(0)
    return float(abs(value - target) <= tolerance)


def last_number(text: str) -> Fraction | None:
    """The last number in a text; None if there is none, or it is absurdly long or n/0."""
    matches = _NUMBER.findall(text)
    if not matches:
        return None
    digits = matches[-1].replace(",", "").replace("\u2212", "-")
    if len(digits) > _MAX_DIGITS:
        return None
    numerator, _, denominator = digits.partition("/")
    if denominator and int(denominator) == 0:
        return None
    return Fraction(numerator) / Fraction(denominator or 1)
