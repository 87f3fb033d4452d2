"""Where words begin: by the rules of spaCy's English tokenizer, which FineWeb's filters use.

Text is cut at spaces. Punctuation at the edges of a piece is cut off, each character a word of its
own. What is left is cut at hyphens between letters, at operators, at dots that repeat, and before
the end of a contraction ("do|n't", "it|'s"). spaCy's list of exceptions, and its patterns of
addresses, are left out: how often a verdict differs for it is in bench/results/data.json.
"""

import numpy as np
import numpy.typing as npt

from gemmule.data.recipe.heuristics.characters import (
    ALONE,
    ALPHABETIC,
    DIGIT,
    EDGE,
    HYPHEN,
    LOWER,
    OPERATOR,
    SIGN,
    SPACE,
    UPPER,
)

Mask = npt.NDArray[np.bool_]
_CONTRACTIONS = ("s", "ll", "re", "ve", "m", "d")


def word_begins(codes: npt.NDArray[np.generic], kinds: npt.NDArray[np.uint16]) -> Mask:
    """Whether a word begins at each character [C]; what it says at spaces has no meaning.

    Args:
        codes: code points [C]; the first and the last are spaces.
        kinds: their classes (see characters.py).
    """
    space = (kinds & SPACE) != 0
    single = _edges(codes, kinds, space) | _infixes(codes, kinds) | ((kinds & ALONE) != 0)
    dots = codes == ord(".")
    again = np.zeros(len(codes), bool)
    again[1:] = dots[1:] & dots[:-1]
    ellipsis = again.copy()
    ellipsis[:-1] |= again[1:]
    single |= ellipsis
    begins = single & ~(again & ellipsis)
    begins[1:] |= (space | single)[:-1] & ~single[1:]
    return begins | _contractions(codes, kinds, space)


def _edges(codes: npt.NDArray[np.generic], kinds: npt.NDArray[np.uint16], space: Mask) -> Mask:
    """Punctuation at the beginning or the end of what stands between spaces."""
    edge = (kinds & EDGE) != 0
    solid = ~edge & ~space
    before = edge & (_last(solid) < _last(space))
    dot = codes == ord(".")
    upper = (kinds & UPPER) != 0
    ends = np.zeros(len(codes), bool)
    ends[2:] = (kinds[1:-1] & (LOWER | DIGIT | EDGE)) != 0
    ends[2:] |= upper[1:-1] & upper[:-2]
    ends[1:] |= dot[:-1]  # "..."
    ends[:-1] |= dot[1:]
    dot = dot & ends
    tail = edge | dot
    after = tail & (_last((~tail & ~space)[::-1]) < _last(space[::-1]))[::-1]
    return before | after


def _last(mask: Mask) -> npt.NDArray[np.int32]:
    """Position of the last True up to each element; -1: none."""
    positions = np.where(mask, np.arange(len(mask), dtype=np.int32), np.int32(-1))
    return np.asarray(np.maximum.accumulate(positions))


def _infixes(codes: npt.NDArray[np.generic], kinds: npt.NDArray[np.uint16]) -> Mask:
    """Characters that cut a word in two."""
    infix = np.zeros(len(codes), bool)
    inner = np.flatnonzero(kinds[1:-1] & (HYPHEN | OPERATOR | SIGN)) + 1
    dots = np.flatnonzero(codes[1:-1] == ord(".")) + 1
    before, own, after = kinds[inner - 1], kinds[inner], kinds[inner + 1]
    letters = ((before & after & ALPHABETIC) != 0) & ((own & HYPHEN) != 0)
    operators = ((before & (ALPHABETIC | DIGIT)) != 0) & ((after & ALPHABETIC) != 0)
    signs = ((before & after & DIGIT) != 0) & ((own & SIGN) != 0)
    infix[inner] = letters | (operators & ((own & OPERATOR) != 0)) | signs
    infix[dots] = ((kinds[dots - 1] & LOWER) != 0) & ((kinds[dots + 1] & UPPER) != 0)
    return infix


def _contractions(
    codes: npt.NDArray[np.generic], kinds: npt.NDArray[np.uint16], space: Mask
) -> Mask:
    """Where the second part of a contraction begins."""
    begins = np.zeros(len(codes), bool)
    marks = np.flatnonzero((codes == ord("'")) | (codes == ord("\u2019")))
    marks = marks[(marks >= 2) & (marks < len(codes) - 3)]
    marks = marks[(kinds[marks - 1] & ALPHABETIC) != 0]
    ends = space | ((kinds & (ALPHABETIC | DIGIT)) == 0)
    for letters in _CONTRACTIONS:
        same = ends[np.minimum(marks + len(letters) + 1, len(codes) - 1)]
        for offset, letter in enumerate(letters):
            same = same & (codes[marks + 1 + offset] == ord(letter))
        begins[marks[same]] = True
    negated = (codes[marks + 1] == ord("t")) & ends[marks + 2] & (codes[marks - 1] == ord("n"))
    negated &= (kinds[marks - 2] & ALPHABETIC) != 0
    begins[marks[negated] - 1] = True
    return begins
