"""Hashes of runs of words, of all of a text at once.

A word is a run of letters and digits in lower case; everything else separates words. The hash of a
word is a difference of running sums over its bytes, and that of a run of words a difference of
running sums over their hashes, so that a text costs the same for runs of any length.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

BREAK = b"\x01"  # a word that no text has: no run of words spans two texts
BYTES_AT_ONCE = 2**21
# Scripts without spaces.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])"
)
# Odd numbers, whose powers have inverses modulo 2^64.
_BYTE_BASE, _WORD_BASE = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


class WordHashes:
    """A normalized text: words of letters and digits between spaces.

    Attributes:
        starts: position of the first byte of each word.
        ends: position after the last byte of each word.
        is_break: whether the word stands for the end of a document.
    """

    def __init__(self, normalized: bytes) -> None:
        self._normalized = normalized
        self._bytes = np.frombuffer(b" " + normalized + b" ", np.uint8)
        word = self._bytes != 32
        self.starts = np.flatnonzero(word[1:] & ~word[:-1])
        self.ends = np.flatnonzero(word[:-1] & ~word[1:])
        self.is_break = self._bytes[self.starts + 1] == BREAK[0]

    def grams(self, n: int) -> Hashes:
        """The hash of the n words that begin with each word."""
        count = len(self.starts)
        if count < n:
            return np.empty(0, np.uint64)
        sums = running(self._bytes[1:-1].astype(np.uint64), _BYTE_BASE)
        back = powers(_BYTE_BASE, len(sums), True)[self.starts]
        own = (sums[self.ends] - sums[self.starts]) * back
        sums = running(mixed(own), _WORD_BASE)
        last = count - n + 1
        return mixed((sums[n:] - sums[:last]) * powers(_WORD_BASE, last, True)[:last])

    def words(self, first: int, n: int) -> list[bytes]:
        """The n words from word number `first` on."""
        return self._normalized[self.starts[first] : self.ends[first + n - 1]].split()


class JoinedTexts(WordHashes):
    """Several normalized texts, hashed at once.

    Attributes:
        word_counts: number of words of each text.

    Args:
        texts: the texts.
    """

    def __init__(self, texts: Sequence[bytes]) -> None:
        super().__init__((b" " + BREAK + b" ").join(texts))
        breaks = np.cumsum([0, *(len(text) + 3 for text in texts)])
        self._text_of_word = np.searchsorted(breaks, self.starts, side="right") - 1
        self.word_counts = np.bincount(self._text_of_word, minlength=len(texts))
        self.word_counts[:-1] -= 1  # the break counts as a word of the text before it

    def first_word(self, text: int) -> int:
        """The number of the first word of a text."""
        return int(np.searchsorted(self._text_of_word, text))

    def whole_grams(self, n: int) -> tuple[Hashes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The n-grams that lie in one text.

        Returns:
            Their hashes, the number of the text of each, and the number of its first word.
        """
        hashes = self.grams(n)
        whole = self._text_of_word[n - 1 :] == self._text_of_word[: len(hashes)]
        whole &= self.is_break[n - 1 :] == 0 if len(hashes) else True
        places = np.flatnonzero(whole)
        return hashes[places], self._text_of_word[places], places


def groups(texts: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Consecutive texts of about BYTES_AT_ONCE bytes, with the number of the first."""
    group: list[bytes] = []
    first = size = 0
    for i, text in enumerate(texts):
        group.append(text)
        size += len(text) + 3
        if size >= BYTES_AT_ONCE:
            yield first, group
            group, first, size = [], i + 1, 0
    if group:
        yield first, group


def running(values: Hashes, base: int) -> Hashes:
    """Prefix sums of value i times the i-th power of the base; one more than there are values."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers(base, len(values), False)[: len(values)], out=sums[1:])
    return sums


_POWERS: dict[tuple[int, bool], Hashes] = {}


def powers(base: int, count: int, inverse: bool) -> Hashes:
    """The first powers of the base, or of its inverse, modulo 2^64; at least `count`."""
    powers = _POWERS.get((base, inverse))
    if powers is None or len(powers) < count:
        powers = np.full(
            max(count, BYTES_AT_ONCE), pow(base, -1, 2**64) if inverse else base, np.uint64
        )
        powers[0] = 1
        np.cumprod(powers, out=powers)
        _POWERS[base, inverse] = powers
    return powers


def mixed(values: Hashes) -> Hashes:
    """Spreads every bit of a sum over all bits (the last steps of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ASCII: letters in lower case and digits stay, the rest becomes a space. Other bytes stay.
_TABLE = bytes(
    b if b > 127 or b == BREAK[0] else ord(chr(b).lower()) if chr(b).isalnum() else 32
    for b in range(256)
)


def spaced(text: str) -> str:
    """A text in which each character of a script without spaces is a word."""
    return text if text.isascii() else _UNSPACED.sub(r" \1 ", text)


def encoded(text: str) -> bytes:
    """UTF-8 of a text without the byte that stands for the end of a document."""
    return text.replace(BREAK.decode(), " ").encode(errors="replace")


def normalize(text: bytes) -> bytes:
    """A text in lower case, with a space for everything but letters and digits."""
    if text.isascii():
        return text.translate(_TABLE)
    lowered = text.decode(errors="replace").lower()
    normalized = lowered.encode().translate(_TABLE)
    for character in set(lowered):  # a few dozen
        if not character.isascii() and not character.isalnum():
            normalized = normalized.replace(character.encode(), b" ")
    return normalized
