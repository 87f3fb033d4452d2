"""Leaves out conversations that a model should not learn from; each has a counted reason."""

import dataclasses
import hashlib
import json
import re

from gemmule.posttrain.conversations import (
    Conversation,
    PreferencePair,
    Prompt,
    messages_before,
)

DUPLICATE = "duplicate"
_WORDS = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is left out.

    Attributes:
        duplicates: conversations whose words are those of an earlier one.
    """

    duplicates: bool = True


class Screen:
    """Applies filters to a stream of conversations, pairs or prompts, in their order."""

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        self._seen: set[bytes] = set()

    def reason(self, item: Conversation | PreferencePair | Prompt) -> str | None:
        """Why it is left out; None: it is kept."""
        if self._filters.duplicates:
            messages = [*messages_before(item)]
            if isinstance(item, PreferencePair):
                messages += [*item.chosen, *item.rejected]
            words = json.dumps([[m.role, normalized(m.content)] for m in messages])
            digest = hashlib.sha256(words.encode(errors="surrogatepass")).digest()[:16]
            if digest in self._seen:
                return DUPLICATE
            self._seen.add(digest)
        return None


def normalized(text: str) -> str:
    """The words of a text in lower case: equal for copies that differ in spaces and marks only."""
    return " ".join(_WORDS.findall(text.casefold()))
