"""Takes the text of benchmarks out of a corpus: documents that share n words in a row, or lines.

The rule is that of the check after training (evals/contamination.py), turned around: there the
n-grams of benchmarks are looked up in the training text, here those of each document in the
benchmarks. What goes through here has none of them.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

from gemmule.data.ngrams import NgramIndex
from gemmule.data.word_hashes import JoinedTexts, encoded, groups, normalize

_WORD = re.compile(r"[^\W_]+")

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Decontaminated:
    """A document without benchmarks' text.

    Attributes:
        text: what is left of it; None: nothing.
        benchmarks: names of those that it shares text with, sorted.
    """

    text: str | None
    benchmarks: tuple[str, ...] = ()


class Decontaminator:
    """Takes documents out, or the lines of them that hold benchmarks' words.

    Args:
        index: n-grams of the benchmarks.
        whole: whether a document goes as a whole.
    """

    def __init__(self, index: NgramIndex, whole: bool = True) -> None:
        self._index, self._whole = index, whole

    def apply(self, texts: Sequence[str]) -> list[Decontaminated]:
        """What is left of each text."""
        grams: list[list[tuple[int, str]]] = [[] for _ in texts]
        for first, group in groups(normalize(encoded(text)) for text in texts):
            for text, word, benchmark in self._index.matches(JoinedTexts(group)):
                grams[first + text].append((word, benchmark))
        return [
            self._without(text, its) if its else Decontaminated(text)
            for text, its in zip(texts, grams, strict=True)
        ]

    def _without(self, text: str, grams: Sequence[tuple[int, str]]) -> Decontaminated:
        benchmarks = {benchmark for _, benchmark in grams}
        while grams and not self._whole:
            text = _without_lines(text, (word for word, _ in grams), self._index.n)
            # What is left on both sides of a gap can make n words in a row again.
            left = JoinedTexts([normalize(encoded(text))])
            grams = [(word, benchmark) for _, word, benchmark in self._index.matches(left)]
            benchmarks.update(benchmark for _, benchmark in grams)
        rest = None if self._whole or not text.strip() else text
        return Decontaminated(rest, tuple(sorted(benchmarks)))


def _without_lines(text: str, grams: Iterable[int], n: int) -> str:
    """The text without the lines that hold any of the n words from each of these on."""
    words = word_spans(text)
    parts, end = [], 0
    for gram in grams:
        start = text.rfind("\n", end, words[gram][0]) + 1 or end
        if start >= end:
            parts.append(text[end:start])
        stop = text.find("\n", words[gram + n - 1][1])
        end = len(text) if stop < 0 else max(end, stop + 1)
    return "".join((*parts, text[end:]))


def word_spans(text: str) -> list[Span]:
    """Start and end in the text of each of the words that n-grams are made of."""
    lowered = text.lower()
    spans = [match.span() for match in _WORD.finditer(lowered)]
    if len(lowered) == len(text):
        return spans
    # Some letters are two in lower case: places in the one are not those in the other.
    places = list(itertools.chain.from_iterable([n] * len(c.lower()) for n, c in enumerate(text)))
    return [(places[start], places[end - 1] + 1) for start, end in spans]
