"""Classes of characters: what cutting text into words, and rules on words, need to know of them."""

import functools
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

SPACE, ALPHABETIC, DIGIT, LOWER, UPPER, NO_PUNCTUATION, ALONE, EDGE, HYPHEN, OPERATOR, SIGN = (
    np.uint16(1 << bit) for bit in range(11)
)
_EDGE = ",:;!?()[]{}<>_#*&%=\"'`$\u00a3\u20ac\u00a5\u00a7\u00a1\u00bf\u2018\u201a\u00b4\u2013\u2014"
_HYPHENS, _OPERATORS, _SIGNS = "-\u2013\u2014~,", ":<>=/", "+-*^"
# Punctuation beyond ASCII that FineWeb's filters count as such (arXiv 2406.17557).
_PUNCTUATION = (
    "\u00ab\u00b4\u00bb\u2013\u2014\u2019\u201c\u201d\u201e\u2026\u2236\u2501\u25ba\u3001\u3002\u3008\u3009\u300a\u300b\u300c"
    "\u300d\u3010\u3011\uff01\uff05\uff08\uff09\uff0c\uff0e\uff11\uff1a\uff1b\uff1f\uff5e"
)
# Unicode's property Sentence_Terminal, as code points; a range is a pair.
_TERMINAL: tuple[int | tuple[int, int], ...] = (
    0x21, 0x2E, 0x3F, 0x589, (0x61D, 0x61F), 0x6D4, (0x700, 0x702), 0x7F9, 0x837, 0x839,
    (0x83D, 0x83E), (0x964, 0x965), (0x104A, 0x104B), 0x1362, (0x1367, 0x1368), 0x166E,
    (0x1735, 0x1736), (0x17D4, 0x17D6), (0x17D9, 0x17DA), 0x1803, 0x1809, (0x1944, 0x1945),
    (0x1AA8, 0x1AAB), (0x1B5A, 0x1B5B), (0x1B5E, 0x1B5F), (0x1B7D, 0x1B7E), (0x1C3B, 0x1C3C),
    (0x1C7E, 0x1C7F), (0x203C, 0x203D), (0x2047, 0x2049), 0x2E2E, 0x2E3C, (0x2E53, 0x2E54),
    0x3002, 0xA4FF, (0xA60E, 0xA60F), 0xA6F3, 0xA6F7, (0xA876, 0xA877), (0xA8CE, 0xA8CF), 0xA92F,
    (0xA9C8, 0xA9C9), (0xAA5D, 0xAA5F), (0xAAF0, 0xAAF1), 0xABEB, 0xFE52, (0xFE56, 0xFE57), 0xFF01,
    0xFF0E, 0xFF1F, 0xFF61, (0x10A56, 0x10A57), (0x10F55, 0x10F59), (0x10F86, 0x10F89),
    (0x11047, 0x11048), (0x110BE, 0x110C1), (0x11141, 0x11143), (0x111C5, 0x111C6), 0x111CD,
    (0x111DE, 0x111DF), (0x11238, 0x11239), (0x1123B, 0x1123C), 0x112A9, (0x1144B, 0x1144C),
    (0x115C2, 0x115C3), (0x115C9, 0x115D7), (0x11641, 0x11642), (0x1173C, 0x1173E), 0x11944,
    0x11946, (0x11A42, 0x11A43), (0x11A9B, 0x11A9C), (0x11C41, 0x11C42), (0x11EF7, 0x11EF8),
    (0x11F43, 0x11F44), (0x16A6E, 0x16A6F), 0x16AF5, (0x16B37, 0x16B38), 0x16B44, 0x16E98, 0x1BC9F,
    0x1DA88,
)  # fmt: skip


def _expanded() -> str:
    pairs = ((e, e) if isinstance(e, int) else e for e in _TERMINAL)
    return "".join(chr(code) for first, last in pairs for code in range(first, last + 1))


TERMINAL_PUNCTUATION = frozenset(_expanded())
# Scripts without spaces between words: a character counts as a word.
_UNSPACED = (
    (0xE00, 0xEFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
# Beyond the last ideographs there are only marks without a shape and private characters.
_ASCII, _MOST, _ALL = 128, 0x3000, 0x32400


@functools.cache
def _classes(count: int) -> npt.NDArray[np.uint16]:
    return np.array([_class_of(chr(code)) for code in range(count)], np.uint16)


def classes_of(codes: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The classes of each character, as a sum of the constants above.

    Args:
        codes: code points; as uint8 if all are ASCII. The whole table takes half a second to
            make, so texts in alphabets do with a part of it.
    """
    if codes.dtype == np.uint8:
        return _classes(_ASCII)[codes]
    if int(codes.max(initial=0)) < _MOST:  # alphabets and symbols
        return _classes(_MOST)[codes]
    return _classes(_ALL)[np.minimum(codes, np.uint32(_ALL - 1))]


def _class_of(character: str) -> int:
    if character.isspace():
        return int(SPACE)
    kind = unicodedata.category(character)
    punctuation = (
        (character.isascii() and not character.isalnum())
        or character in TERMINAL_PUNCTUATION
        or character in _PUNCTUATION
        or kind == "Cc"
    )
    alone = kind == "So" or any(first <= ord(character) <= last for first, last in _UNSPACED)
    edge = character in _EDGE or (not character.isascii() and kind[0] == "P")
    holds = {
        ALPHABETIC: character.isalpha(),
        DIGIT: character.isdecimal(),
        LOWER: character.islower(),
        UPPER: character.isupper(),
        NO_PUNCTUATION: not punctuation,
        ALONE: alone or character == "\u2026",
        EDGE: edge,
        HYPHEN: character in _HYPHENS,
        OPERATOR: character in _OPERATORS,
        SIGN: character in _SIGNS,
    }
    return sum(int(flag) for flag, is_set in holds.items() if is_set)
