"""Gopher's rules on quality (arXiv 2112.11446, appendix A.1.1) and on repetition (table A1).

Details that the paper leaves open are as in FineWeb's pipeline (arXiv 2406.17557).
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pydantic

from gemmule.config import Config
from gemmule.data.recipe.heuristics import characters as classes
from gemmule.data.recipe.heuristics.words import (
    Repeats,
    Words,
    most_frequent,
    repeated_characters,
)

_PARAGRAPHS, _LINES = re.compile("\n{2,}"), re.compile("\n+")
_BULLETS, _ELLIPSES = ("•", "-"), ("...", "…")
_TOP = (2, 3, 4)
_RUNS = (5, 6, 7, 8, 9, 10)


class GopherQuality(Config):
    """Limits of the rules on quality: shares of words and of lines.

    Attributes:
        min_words: fewest words, punctuation left out.
        max_words: most words.
        min_word_length: least mean length of a word, characters.
        max_word_length: greatest mean length of a word.
        max_hashes: most "#" per word.
        max_ellipses: most ellipses per word.
        max_bullet_lines: greatest share of lines that begin with a bullet point.
        max_ellipsis_lines: greatest share of lines that end in an ellipsis.
        min_alphabetic_words: least share of words with a letter in them.
        min_stop_words: how many of `stop_words` must occur.
        stop_words: the words.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3
    max_word_length: float = 10
    max_hashes: float = 0.1
    max_ellipses: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic_words: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")

    @pydantic.field_validator("stop_words")
    @classmethod
    def _check_stop_words(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if any(not word.isascii() or not word.isalnum() for word in words):
            raise ValueError("stop words are made of ASCII letters and digits")
        return words


class GopherRepetition(Config):
    """Limits of the rules on repetition: shares of lines, of paragraphs, and of characters.

    Attributes:
        duplicate_lines: greatest share of lines that repeat an earlier one.
        duplicate_paragraphs: the same of paragraphs.
        duplicate_line_characters: greatest share of characters in them.
        duplicate_paragraph_characters: the same of paragraphs.
        top_runs: greatest share of characters in the most frequent run of 2, 3 and 4 words.
        duplicate_runs: greatest share of characters in repeated runs of 5 to 10 words.
    """

    duplicate_lines: float = 0.3
    duplicate_paragraphs: float = 0.3
    duplicate_line_characters: float = 0.2
    duplicate_paragraph_characters: float = 0.2
    top_runs: tuple[float, float, float] = (0.20, 0.18, 0.16)
    duplicate_runs: tuple[float, float, float, float, float, float] = (
        0.15, 0.14, 0.13, 0.12, 0.11, 0.10,
    )  # fmt: skip


class Repeated(NamedTuple):
    """How many elements of a list repeat an earlier one, and their characters."""

    elements: int
    characters: int


def repeated(elements: Sequence[str]) -> Repeated:
    """What repeats in a list of lines or paragraphs."""
    if len(set(elements)) == len(elements):
        return Repeated(0, 0)
    seen: set[str] = set()
    count = size = 0
    for element in elements:
        if element in seen:
            count += 1
            size += len(element)
        else:
            seen.add(element)
    return Repeated(count, size)


def quality(texts: Sequence[str], words: Words, limits: GopherQuality) -> list[str | None]:
    """For each text, the limit that it breaks, or None."""
    lengths_W = words.ends_W - words.starts_W
    plain_W = (words.flags_W & classes.NO_PUNCTUATION) != 0
    plain_T = words.sum_by_text(plain_W)
    characters_T = words.sum_by_text(lengths_W * plain_W)
    alphabetic_T = words.sum_by_text((words.flags_W & classes.ALPHABETIC) != 0)
    stop_T = np.zeros(len(texts), np.int64)
    for occurs_W in words.is_one_of(limits.stop_words):
        stop_T += words.sum_by_text(occurs_W) > 0
    rows = zip(
        texts, words.counts_T.tolist(), plain_T.tolist(), characters_T.tolist(),
        alphabetic_T.tolist(), stop_T.tolist(), strict=True,
    )  # fmt: skip
    return [next(_quality(limits, *row), None) for row in rows]


def _quality(
    limits: GopherQuality, text: str, count: int, plain: int, characters: int, alphabetic: int,
    stops: int,
) -> Iterator[str]:  # fmt: skip
    """Names of the limits that a text breaks; only the first one is asked for."""
    if plain < max(limits.min_words, 1):
        yield "min_words"
    if plain > limits.max_words:
        yield "max_words"
    if characters / plain < limits.min_word_length:
        yield "min_word_length"
    if characters / plain > limits.max_word_length:
        yield "max_word_length"
    if text.count("#") / count > limits.max_hashes:
        yield "max_hashes"
    ellipses = sum(map(text.count, _ELLIPSES))
    if ellipses / count > limits.max_ellipses:
        yield "max_ellipses"
    if "•" in text or "-" in text or ellipses:
        lines = text.splitlines()
        bullets = sum(line.lstrip().startswith(_BULLETS) for line in lines)
        if bullets / len(lines) > limits.max_bullet_lines:
            yield "max_bullet_lines"
        if ellipses:
            ends = sum(line.rstrip().endswith(_ELLIPSES) for line in lines)
            if ends / len(lines) > limits.max_ellipsis_lines:
                yield "max_ellipsis_lines"
    if alphabetic / count < limits.min_alphabetic_words:
        yield "min_alphabetic_words"
    if stops < limits.min_stop_words:
        yield "min_stop_words"


def repetition(texts: Sequence[str], words: Words, limits: GopherRepetition) -> list[str | None]:
    """For each text, the limit that it breaks, or None."""
    broken = [_lines(text, limits) for text in texts]
    sizes_T = np.array([len(text) for text in texts])
    repeats = Repeats(words)
    longest_T = _longest_words(words)
    for n in (*_TOP, *_RUNS):
        repeats.lengthen()
        share = limits.top_runs[n - _TOP[0]] if n in _TOP else limits.duplicate_runs[n - _RUNS[0]]
        places = repeats.by_text()
        name = f"top_{n}_words" if n in _TOP else f"repeated_{n}_words"
        # No run has more characters than n times the longest word, and spaces.
        bound_T = np.maximum(np.diff(places), 1) * n * (longest_T + 1)
        for text in np.flatnonzero(bound_T > share * sizes_T).tolist():
            if broken[text] is not None or words.counts_T[text] < n:
                continue
            low, high = int(places[text]), int(places[text + 1])
            size = (
                most_frequent(repeats, low, high, int(words.first_T[text]))
                if n in _TOP
                else repeated_characters(repeats, low, high)
            )
            if size / len(texts[text]) > share:
                broken[text] = name
    return broken


def _longest_words(words: Words) -> npt.NDArray[np.int64]:
    """Characters of each text's longest word."""
    longest_T = np.zeros(len(words.counts_T), np.int64)
    some = words.counts_T > 0
    if some.any():
        lengths = words.ends_W - words.starts_W
        longest_T[some] = np.maximum.reduceat(lengths, words.first_T[:-1][some])
    return longest_T


def _lines(text: str, limits: GopherRepetition) -> str | None:
    paragraphs = _PARAGRAPHS.split(text.strip())
    again = repeated(paragraphs)
    if again.elements / len(paragraphs) > limits.duplicate_paragraphs:
        return "duplicate_paragraphs"
    if again.characters / max(len(text), 1) > limits.duplicate_paragraph_characters:
        return "duplicate_paragraph_characters"
    lines = _LINES.split(text)
    again = repeated(lines)
    if again.elements / len(lines) > limits.duplicate_lines:
        return "duplicate_lines"
    if again.characters / max(len(text), 1) > limits.duplicate_line_characters:
        return "duplicate_line_characters"
    return None
