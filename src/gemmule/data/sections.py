"""Cuts long texts at blank lines, so that a few books become many documents."""

import itertools
import unicodedata
from collections.abc import Iterable, Iterator

SECTION_BYTES = 64 * 1024
_MOST_BYTES = 1.3  # per character, of text that is measured in characters
_SAMPLED, _FEW_BYTES = 61, 1.1
_MARKS = (
    *("\n\n", "\n\r\n", "\n", " "),
    # Scripts without spaces: sentences, then phrases.
    *("。」", "。", "！", "？", "．", "။", "៕", "។", "། ", "།", "；", "，", "、", "\u3000", "་"),
)
_ZERO_WIDTH_JOINER = "\u200d"
_VIRAMA = 9  # combining class: joins two consonants into one
_FOLLOWING_VOWELS = "\u0e33\u0eb3"  # of Thai and Lao, which belong to the letter before them


def cut(blocks: Iterable[str], size: int = SECTION_BYTES) -> Iterator[str]:
    """Cuts a text, given in blocks of any length, into sections of size/2 to 5/4 size.

    `size` is in characters, which are bytes in English and nearly so in other languages in Latin
    letters. Where a character takes more than 1.3 bytes of UTF-8, it is in bytes: `size` bytes
    are then counted off, and the section has 1/2 to 5/4 of these characters.

    It cuts after the last blank line that fits, or else after a line end, after a space, after a
    sentence of a script without spaces, or between any two characters that a reader would see.
    Joined, the sections give the text; only a whole text can be shorter than size/4.
    """
    text = ""
    for block in itertools.chain(blocks, [None]):
        text += block or ""
        start = 0
        # A quarter is held back so that the last section is never tiny.
        while len(text) - start > size + size // 4 or block is None:
            length = _characters(text, start, size)
            if len(text) - start <= length + length // 4:
                break
            stop = _cut_before(text, start + length // 2, start + length)
            yield text[start:stop]
            start = stop
        text = text[start:]
    if text:
        yield text


def _characters(text: str, start: int, size: int) -> int:
    """How many of the `size` characters from `start` make a section."""
    sample = text[start : start + size : _SAMPLED]
    if len(sample.encode(errors="replace")) <= _FEW_BYTES * len(sample):
        return size  # as in English, French and German, without counting every character
    text = text[start : start + size]
    data = text.encode(errors="replace")
    if len(data) <= _MOST_BYTES * len(text):
        return size
    return len(data[:size].decode(errors="ignore"))


def _cut_before(text: str, low: int, high: int) -> int:
    for mark in _MARKS:
        at = text.rfind(mark, low, high)
        if at >= 0:
            return at + len(mark)
    return next((at for at in range(high, low, -1) if _is_boundary(text, at)), high)


def _is_boundary(text: str, at: int) -> bool:
    """Whether text[at] begins what a reader sees as a character, by Unicode's main rules."""
    before, after = text[at - 1], text[at : at + 1]
    if not after or after.isascii():
        return not (before == "\r" and after == "\n")
    if unicodedata.category(after).startswith("M") or after in _FOLLOWING_VOWELS:
        return False
    if _ZERO_WIDTH_JOINER in (before, after) or unicodedata.combining(before) == _VIRAMA:
        return False
    if "\U0001f3fb" <= after <= "\U0001f3ff":  # a skin tone
        return False
    if _is_flag_letter(after) and _is_flag_letter(before):
        flags = itertools.takewhile(lambda n: _is_flag_letter(text[n]), range(at - 1, -1, -1))
        return sum(1 for _ in flags) % 2 == 0
    # Conjoining Korean letters: leading consonant, vowel, final consonant.
    return not ("\u1100" <= before <= "\u11ff" and "\u1160" <= after <= "\u11ff") and not (
        "\uac00" <= before <= "\ud7a3" and "\u1160" <= after <= "\u11ff"
    )


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
