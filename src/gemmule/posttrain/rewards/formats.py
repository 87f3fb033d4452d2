"""Rewards for the form of an answer, whatever it says."""

import json
import re
from collections.abc import Mapping
from typing import Any

from gemmule.errors import DataError
from gemmule.posttrain.rewards.record import expected

_TAGGED = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


def json_object(answer: str, record: Mapping[str, Any]) -> float:
    """1 if the answer is one JSON object, with exactly record["keys"] if the record has them."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(value, dict):
        return 0.0
    return float("keys" not in record or set(value) == set(record["keys"]))


def pattern(answer: str, record: Mapping[str, Any]) -> float:
    """1 if the whole answer, without whitespace at its ends, matches record["pattern"].

    Raises:
        DataError: if the record has no pattern, or it is not a regular expression.
    """
    given = expected(record, "pattern")
    try:
        return float(re.fullmatch(given, answer.strip()) is not None)
    except (re.error, TypeError) as e:
        raise DataError(f"pattern = {given!r} is not a regular expression: {e}") from None


def tagged(answer: str, record: Mapping[str, Any]) -> float:
    """1 if the answer is one <think> part and one <answer> part, and nothing else."""
    match = _TAGGED.fullmatch(answer)
    return float(match is not None and not re.search(r"</?(think|answer)>", match[1] + match[2]))
