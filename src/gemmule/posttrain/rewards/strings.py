"""Rewards for answers whose text is known."""

import re
from collections.abc import Mapping
from typing import Any

from gemmule.errors import DataError
from gemmule.posttrain.rewards.record import expected


def exact(answer: str, record: Mapping[str, Any]) -> float:
    """1 if the answer is record["answer"], or one of them if it is a list; otherwise 0.

    Runs of whitespace count as one space, and whitespace at the ends does not count.

    Args:
        answer: the model's answer.
        record: record["answer"], a text, a number or a list of them; record["ignore_case"], if
            true, compares without case.

    Raises:
        DataError: if the record has no answer.
    """
    known = expected(record, "answer")
    accepted = known if isinstance(known, list | tuple) else [known]

    def normalized(text: Any) -> str:
        joined = " ".join(str(text).split())
        return joined.casefold() if record.get("ignore_case") else joined

    return float(normalized(answer) in {normalized(text) for text in accepted})


def mentions(answer: str, record: Mapping[str, Any]) -> float:
    """The fraction of the words of record["words"] that the answer has, as whole words.

    A word does not have to be used well to count: combine this with a reward that looks at the
    whole answer.

    Args:
        answer: the model's answer.
        record: record["words"], a list of words.

    Raises:
        DataError: if the record has no words.
    """
    words = expected(record, "words")
    if not isinstance(words, list | tuple) or not words:
        raise DataError(f"words = {words!r}: a list of words is needed for the reward mentions")
    present = sum(bool(re.search(rf"(?<!\w){re.escape(str(w))}(?!\w)", answer)) for w in words)
    return present / len(words)
