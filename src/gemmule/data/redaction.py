"""Removes personal data from text, or puts placeholders in its place, by the severity of a leak.

A placeholder has the kind of data and a keyed hash of the value: <EMAIL_ADDRESS_cfkamdopbe>. The
same value gives the same one in every document and in any order of documents, so that a text stays
consistent. Without the key, no one can find out by trying which value it stands for.
"""

import dataclasses
import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from gemmule.data.personal_data import PersonalDataMatch, find

Action = Literal["remove", "replace", "count"]
ACTIONS: Mapping[str, Action] = {"high": "remove", "medium": "replace", "low": "count"}
_DONE: Mapping[Action, str] = {"remove": "removed", "replace": "replaced", "count": "left"}

_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
_LETTERS_OF_HASH = 10  # 40 bits; letters alone, for digits could look like a number


@dataclasses.dataclass(frozen=True)
class Redacted:
    """A text without the personal data that was to go.

    Attributes:
        text: the text.
        counts: number of values by kind and what became of them: "e-mail address, replaced".
    """

    text: str
    counts: Counter[str]


def redact(text: str, key: bytes, actions: Mapping[str, Action] = ACTIONS) -> Redacted:
    """Removes, replaces or counts the personal data of a text.

    Nothing that is removed or replaced can be found in the result, nor is it changed by redacting
    it again: what removing one value brings together is looked at again.

    Args:
        text: the text.
        key: key of the placeholders' hashes.
        actions: what is done, by severity.
    """
    counts: Counter[str] = Counter()
    while True:
        matches = find(text)
        changes = [m for m in matches if actions[m.severity] != "count"]
        if not changes:
            counts.update(_counted(match, "count") for match in matches)
            return Redacted(text, counts)
        parts, end = [], 0
        for match in changes:
            action = actions[match.severity]
            parts.append(text[end : match.start])
            if action == "replace":
                parts.append(placeholder(match, key))
            end = match.end
            counts[_counted(match, action)] += 1
        text = "".join((*parts, text[end:]))


def placeholder(match: PersonalDataMatch, key: bytes) -> str:
    """What stands for a value: its kind, and letters that depend on the value and the key."""
    kind = re.sub(r"\W+", "_", match.kind.replace("'s", "").replace("-", "")).strip("_").upper()
    digest = hmac.digest(key, f"{match.kind}\0{match.value}".encode(), hashlib.sha256)
    return f"<{kind}_{digest.hex()[:_LETTERS_OF_HASH].translate(_LETTERS)}>"


def _counted(match: PersonalDataMatch, action: Action) -> str:
    return f"{match.kind}, {_DONE[action]}"


def hidden(text: str) -> str:
    """A text that can be shown: of all that could be personal data only the shape is left."""
    parts, end = [], 0
    for match in find(text, checked=False):
        parts += [text[end : match.start], match.masked]
        end = match.end
    return "".join((*parts, text[end:]))
