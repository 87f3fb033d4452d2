"""Many texts cut into words at once, with their repeated runs of words.

Everything is arrays over the characters of all texts together, because a document is too short to
be worth numpy's calls.

Shapes: C characters that are not spaces, W words, T texts.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gemmule.data.recipe.heuristics import characters as classes
from gemmule.data.recipe.heuristics.word_begins import word_begins
from gemmule.data.word_hashes import Hashes, mixed, powers, running

_BASE = 0x9E3779B97F4A7C15
_TEXT_BITS = np.uint64(44)  # the rest of a key's 64 bits is the number of its text
MOST_TEXTS = 2**20


class Words:
    """The words of several texts.

    Attributes:
        ends_W: position in C after each word; `starts_W` that of its first character.
        first_T: number of each text's first word; one more element than there are texts.
        counts_T: number of words of each text.
        flags_W: classes of the characters in each word (see characters.py), joined by "or".

    Args:
        texts: at most MOST_TEXTS of them.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        joined = " ".join(["", *texts, ""])
        ascii_only = joined.isascii()
        codes = (
            np.frombuffer(joined.encode("ascii"), np.uint8)
            if ascii_only
            else np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        )
        kinds = classes.classes_of(codes)
        shown = (kinds & classes.SPACE) == 0
        begins = word_begins(codes, kinds)[shown]
        self.codes_C = codes[shown]
        self.starts_W = np.flatnonzero(begins)
        self.ends_W = np.append(self.starts_W, len(self.codes_C))[1:]
        lengths = [len(text) + 1 for text in texts]
        before = np.concatenate(([0], np.cumsum(shown)))
        firsts = before[np.cumsum([1, *lengths])[:-1]] if texts else np.empty(0, np.int64)
        self.first_T = np.append(np.searchsorted(self.starts_W, firsts), len(self.starts_W))
        self.flags_W = (
            np.bitwise_or.reduceat(kinds[shown], self.starts_W)
            if len(self.starts_W)
            else np.empty(0, np.uint16)
        )
        self.counts_T = np.diff(self.first_T)
        self._sums: Hashes | None = None

    def sum_by_text(self, values_W: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """Sums of a value of each word, by text."""
        sums = np.concatenate(([0], np.cumsum(values_W, dtype=np.int64)))
        return np.asarray(sums[self.first_T[1:]] - sums[self.first_T[:-1]])

    def hashes(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Hashes:
        """Hashes of the characters from `starts` to `ends` (positions in C)."""
        if self._sums is None:
            self._sums = running(self.codes_C.astype(np.uint64), _BASE)
        back = powers(_BASE, len(self._sums), True)
        return mixed((self._sums[ends] - self._sums[starts]) * back[starts])

    def is_one_of(self, words: Sequence[str]) -> list[npt.NDArray[np.bool_]]:
        """For each of a few ASCII words, whether each word [W] is that one."""
        lengths = self.ends_W - self.starts_W
        matches = []
        for word in words:
            same = lengths == len(word)
            places = self.starts_W[same]
            equal = np.ones(len(places), bool)
            for offset, character in enumerate(word):
                equal &= self.codes_C[places + offset] == ord(character)
            same[same] = equal
            matches.append(same)
        return matches


class Repeats:
    """The runs of n words that occur more than once in their text, for n = 2, then 3, and so on.

    A run of n + 1 words is repeated only if its first n are, so that each call of `lengthen` has
    less to do than the one before.

    Attributes:
        n: number of words in a run.
        first_W: number of the first word of each repeated run, ascending.
        keys: key of each: equal for equal runs of one text.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self.n = 1
        self._text_W = np.repeat(np.arange(len(words.counts_T)), words.counts_T)
        self.first_W = np.arange(len(self._text_W))
        self.keys: Hashes = np.empty(0, np.uint64)

    def lengthen(self) -> None:
        """Goes on to runs of one word more."""
        self.n += 1
        last = self.first_W + self.n - 1
        inside = last < len(self._text_W)
        first, last = self.first_W[inside], last[inside]
        texts = self._text_W[first]
        whole = self._text_W[last] == texts
        first, last, texts = first[whole], last[whole], texts[whole]
        hashes = self._words.hashes(self._words.starts_W[first], self._words.ends_W[last])
        keys = (texts.astype(np.uint64) << _TEXT_BITS) | (hashes >> (np.uint64(64) - _TEXT_BITS))
        repeated = _in_twice(keys)
        self.first_W, self.keys = first[repeated], keys[repeated]

    def by_text(self) -> npt.NDArray[np.int64]:
        """Where in `first_W` the runs of each text begin; one more element than texts."""
        return np.searchsorted(self.first_W, self._words.first_T)

    def length(self, first: int, spaced: bool) -> int:
        """Characters of the run that begins with word `first`, joined by spaces or by nothing."""
        words, n = self._words, self.n
        size = int(words.ends_W[first + n - 1] - words.starts_W[first])
        return size + n - 1 if spaced else size


def most_frequent(repeats: Repeats, low: int, high: int, first_word: int) -> int:
    """Characters in all occurrences of a text's most frequent run (of equal ones, the first).

    Args:
        repeats: runs of n words.
        low: where the text's runs begin in `repeats.first_W`.
        high: where they end.
        first_word: number of the text's first word.
    """
    if low == high:  # no run is repeated: the first one is as frequent as any
        return repeats.length(first_word, True)
    keys = repeats.keys[low:high]
    _, places, counts = np.unique(keys, return_index=True, return_counts=True)
    most = counts.max()
    place = int(places[counts == most].min())
    return int(most) * repeats.length(int(repeats.first_W[low + place]), True)


def repeated_characters(repeats: Repeats, low: int, high: int) -> int:
    """Characters of a text that lie in runs seen before, read from left to right.

    A run that was seen is skipped as a whole; the runs that begin within it are not remembered.

    Args:
        repeats: runs of n words.
        low: where the text's runs begin in `repeats.first_W`.
        high: where they end.
    """
    seen: set[int] = set()
    size, free = 0, 0
    firsts = repeats.first_W[low:high].tolist()
    for first, key in zip(firsts, repeats.keys[low:high].tolist(), strict=True):
        if first < free:
            continue
        if key in seen:
            size += repeats.length(first, False)
            free = first + repeats.n
        else:
            seen.add(key)
    return size


def _in_twice(keys: Hashes) -> npt.NDArray[np.bool_]:
    """Which keys occur more than once."""
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(twice):
        return np.zeros(len(keys), bool)
    # One byte is looked up for each key, which leaves few others.
    table = np.zeros(2**20, bool)
    table[_slot(twice)] = True
    maybe = np.flatnonzero(table[_slot(keys)])
    twice = twice[np.concatenate(([True], twice[1:] != twice[:-1]))]
    place = np.minimum(np.searchsorted(twice, keys[maybe]), len(twice) - 1)
    repeated = np.zeros(len(keys), bool)
    repeated[maybe[twice[place] == keys[maybe]]] = True
    return repeated


def _slot(keys: Hashes) -> npt.NDArray[np.int64]:
    """A place in a table of 2^20 entries."""
    return ((keys * np.uint64(0xC2B2AE3D27D4EB4F)) >> np.uint64(44)).astype(np.int64)


def batches(sizes: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """Ranges of consecutive texts with at most `limit` characters in all, or one text with more.

    Args:
        sizes: characters of each text.
        limit: most characters of a batch.
    """
    ranges: list[tuple[int, int]] = []
    first = size = 0
    for number, each in enumerate(sizes):
        if number > first and (size + each > limit or number - first == MOST_TEXTS):
            ranges.append((first, number))
            first, size = number, 0
        size += each
    return [*ranges, (first, len(sizes))] if sizes else ranges
