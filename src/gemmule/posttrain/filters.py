"""Leaves out conversations that a model should not learn from; each has a counted reason."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence

from gemmule.data.personal_data import check_installed, find
from gemmule.posttrain.conversations import (
    Conversation,
    Message,
    PreferencePair,
    Prompt,
    messages_before,
)

DUPLICATE = "duplicate"
SELF_IDENTIFICATION = "answers as another company's model"
PERSONAL_DATA = "holds personal data"
CUT = "answer cut by a limit"
_WORDS = re.compile(r"\w+")
# An answer in which a model says what it is: as another model, or as that of another company.
_NAMES = (
    r"chatgpt|gpt-?[345][\w.]*|openai|anthropic|claude|bard|gemini|llama|meta ai|mistral|mixtral|"
    "qwen|alibaba|deepseek|grok|xai|vicuna|alpaca|koala|copilot|open assistant|openassistant|lmsys"
)
_SELF = re.compile(
    rf"\b(i am|i'm|my name is|this is|i was|i've been|as)\b[^.!?\n]{{0,40}}?\b({_NAMES})\b"
    rf"|\b(trained|created|developed|made|built) by ({_NAMES})\b",
    re.IGNORECASE,
)
# Fields in which programs that made the answers say that a limit ended them.
_FINISHES = ("finish_reason", "stop_reason")
_LIMITS = {"length", "max_tokens", "context"}


@dataclasses.dataclass(frozen=True)
class Filters:
    """What is left out (Gemma 2 report, section 4).

    Attributes:
        duplicates: conversations whose words are those of an earlier one.
        self_identification: answers in which the model calls itself by another model's name.
        personal_data: conversations with personal data of these severities, see
            gemmule.data.personal_data; the extra `eval` finds them.
        cut: answers whose record says that a limit ended them.
    """

    duplicates: bool = True
    self_identification: bool = True
    personal_data: frozenset[str] = frozenset()
    cut: bool = True


class Screen:
    """Applies filters to a stream of conversations, pairs or prompts, in their order."""

    def __init__(self, filters: Filters) -> None:
        """Checks that everything needed is installed.

        Raises:
            MissingExtraError: when personal data is to be found and its extra is missing.
        """
        if filters.personal_data:
            check_installed()
        self._filters = filters
        self._seen: set[bytes] = set()

    def reason(self, item: Conversation | PreferencePair | Prompt) -> str | None:
        """Why it is left out; None: it is kept."""
        filters, messages = self._filters, [*messages_before(item)]
        answers = [m for m in messages if m.role == "assistant"]
        if isinstance(item, PreferencePair):
            # A rejected answer may have any fault; a model does not learn to give it.
            answers = [m for m in item.chosen if m.role == "assistant"]
            messages += [*item.chosen, *item.rejected]
        if filters.cut and any(item.record.get(name) in _LIMITS for name in _FINISHES):
            return CUT
        if filters.self_identification and any(_SELF.search(m.content) for m in answers):
            return SELF_IDENTIFICATION
        if filters.personal_data and any(
            match.severity in filters.personal_data
            for message in messages
            for match in find(message.content)
        ):
            return PERSONAL_DATA
        if filters.duplicates and self._is_duplicate(messages):
            return DUPLICATE
        return None

    def _is_duplicate(self, messages: Sequence[Message]) -> bool:
        words = json.dumps([[m.role, normalized(m.content)] for m in messages])
        digest = hashlib.sha256(words.encode(errors="surrogatepass")).digest()[:16]
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def normalized(text: str) -> str:
    """The words of a text in lower case: equal for copies that differ in spaces and marks only."""
    return " ".join(_WORDS.findall(text.casefold()))
