"""The funnel: how much text came to each stage and passed it, and what fell out for which reason.

It is plain JSON values, so that those of chunks can be written and added up:

    {"read": [documents, bytes],
     "stages": {"normalize": {"passed": [documents, bytes], "dropped": {reason: [documents, bytes]},
                              "counts": {what: number}}, …},
     "lengths": {exponent of two: documents that passed all stages of this many bytes or more}}
"""

import dataclasses
import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemmule.data.recipe.stage import Outcome
from gemmule.data.redaction import hidden
from gemmule.data.sources import Document

MOST_EXAMPLES = 20
_EXCERPT = 400  # characters
_LOOKED_AT = 2 * _EXCERPT  # for personal data, some of which the end of an excerpt would cut


@dataclasses.dataclass(frozen=True, order=True)
class Example:
    """A document that fell out.

    Attributes:
        digest: SHA-256 of its name and text, hexadecimal; those with the smallest ones are kept,
            which is a random choice that does not depend on any order.
        stage: the stage that dropped it.
        reason: why.
        key: where it came from, its source first.
        bytes: its size.
        excerpt: its beginning, without personal data once it leaves this process.
    """

    digest: str
    stage: str
    reason: str
    key: str
    bytes: int
    excerpt: str


class Tally:
    """The funnel of the documents of one chunk, and examples of what fell out."""

    def __init__(self) -> None:
        self.funnel: dict[str, Any] = {"read": [0, 0], "stages": {}, "lengths": {}}
        self._examples: list[Example] = []

    def read(self, documents: Sequence[Document]) -> None:
        """Counts what was read."""
        self.funnel["read"] = [len(documents), sum(size(d.text) for d in documents)]

    def stage(
        self, name: str, documents: Sequence[Document], outcomes: Sequence[Outcome]
    ) -> list[Document]:
        """Counts what a stage made of documents, and returns those that passed."""
        passed: list[Document] = []
        dropped: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        counts: dict[str, int] = defaultdict(int)
        for document, outcome in zip(documents, outcomes, strict=True):
            for what, count in outcome.counts.items():
                counts[what] += count
            if outcome.text is None:
                self._drop(name, document, outcome.reason or "no reason given", dropped)
            elif outcome.text is document.text:
                passed.append(document)
            else:
                passed.append(dataclasses.replace(document, text=outcome.text))
        self.funnel["stages"][name] = {
            "passed": [len(passed), sum(size(d.text) for d in passed)],
            "dropped": dict(sorted(dropped.items())),
            "counts": dict(sorted(counts.items())),
        }
        return passed

    def _drop(
        self, stage: str, document: Document, reason: str, dropped: dict[str, list[int]]
    ) -> None:
        text = document.text.encode(errors="replace")
        key = f"{document.source}/{document.key}"
        digest = hashlib.sha256(key.encode(errors="replace") + b"\0" + text).hexdigest()
        dropped[reason][0] += 1
        dropped[reason][1] += len(text)
        head = document.text[:_LOOKED_AT]
        self._examples.append(Example(digest, stage, reason, key, len(text), head))
        if len(self._examples) > 50 * MOST_EXAMPLES:
            self._examples = fewest(self._examples)

    def lengths(self, documents: Sequence[Document]) -> None:
        """Counts the sizes of what passed all stages."""
        counts: dict[str, int] = defaultdict(int)
        for document in documents:
            counts[str(size(document.text).bit_length() - 1)] += 1
        self.funnel["lengths"] = dict(sorted(counts.items()))

    def examples(self) -> list[dict[str, Any]]:
        """Examples of each stage and reason, as JSON values."""
        return [
            {**dataclasses.asdict(example), "excerpt": excerpt(example.excerpt)}
            for example in fewest(self._examples)
        ]


def size(text: str) -> int:
    """UTF-8 bytes of a text."""
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def excerpt(text: str) -> str:
    """The beginning of a text, with the shape of what could be personal data instead of it."""
    return hidden(text[:_LOOKED_AT])[:_EXCERPT].encode(errors="replace").decode()


def fewest(examples: Iterable[Example]) -> list[Example]:
    """The MOST_EXAMPLES examples of each stage and reason that are kept, in order."""
    groups: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.stage, example.reason].append(example)
    return [e for key in sorted(groups) for e in heapq.nsmallest(MOST_EXAMPLES, groups[key])]


def add(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Adds a funnel to another one, number by number."""
    for key, value in part.items():
        if isinstance(value, Mapping):
            add(total.setdefault(key, {}), value)
        elif isinstance(value, list):
            known = total.get(key, [0] * len(value))
            total[key] = [a + b for a, b in zip(known, value, strict=True)]
        else:
            total[key] = total.get(key, 0) + value
