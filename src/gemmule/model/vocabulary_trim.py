"""Trims a vocabulary to the pieces that a text needs.

BPE merges the best pair of neighbors again and again. If every piece that ever appears while a text
is encoded is kept, the trimmed vocabulary encodes the text the same way: at each step its possible
merges are some of the full vocabulary's, and the best of those is among them. The pieces that
appear are the tokens of the text and those that they are merged from; a piece is always merged from
the same two (merges.py says why). Text with other pieces falls apart into smaller ones, in the end
into bytes, so every string still round-trips.

Shapes: V tokens of the full vocabulary, K kept ones.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gemmule.model.piece_choice import PieceGraph, choose
from gemmule.model.spm_model import NORMAL, UNUSED, USER_DEFINED, Piece
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, SPACE
from gemmule.model.tokenizer import Tokenizer

_ASCII = frozenset(map(chr, range(0x21, 0x7F))) | {SPACE}


@dataclass(frozen=True)
class Trimmed:
    """A trimmed vocabulary.

    Attributes:
        tokenizer: tokenizer with the kept pieces, in the order of their former ids.
        kept_K: the former id of each token, ascending, int64.
        coverage: fraction of the text's tokens that are kept pieces.
    """

    tokenizer: Tokenizer
    kept_K: npt.NDArray[np.int64]
    coverage: float


def trim_tokenizer(
    tokenizer: Tokenizer,
    counts_V: npt.NDArray[np.int64],
    *,
    size: int | None = None,
    coverage: float = 1.0,
) -> Trimmed:
    """Keeps the most frequent pieces of a text, and what they are merged from.

    The fixed ids of Gemma's layout, added tokens, user-defined pieces and the printable characters
    of ASCII are kept in any case. Room that the text leaves in `size` is filled with the pieces
    that the full vocabulary merges first.

    Args:
        tokenizer: the full tokenizer.
        counts_V: number of times that the text has each token.
        size: number of tokens to keep; None: as many as `coverage` takes.
        coverage: fraction of the text's tokens whose pieces have to be kept, in (0, 1].

    Raises:
        ConfigError: when size or coverage is impossible, or they contradict each other, or most
            tokens of the text are bytes.
    """
    pieces = tokenizer.pieces
    graph = Merges(pieces, list(_always_kept(tokenizer, pieces)))
    kept_K, share = choose(graph, counts_V, size=size, coverage=coverage)
    return Trimmed(_with_pieces(tokenizer, pieces, kept_K), kept_K, share)


def _always_kept(tokenizer: Tokenizer, pieces: list[Piece]) -> Iterator[int]:
    yield from range(FIRST_LEARNED_ID)
    yield from (token.id for token in tokenizer.added_tokens)
    for i, piece in enumerate(pieces[FIRST_LEARNED_ID:], FIRST_LEARNED_ID):
        if piece.kind == USER_DEFINED or piece.text in _ASCII:
            yield i


class Merges(PieceGraph):
    """How the pieces of a SentencePiece vocabulary are built.

    Args:
        pieces: all pieces by id.
        always: ids that are kept in any case.
    """

    def __init__(self, pieces: list[Piece], always: list[int]) -> None:
        self.always, self.bytes = always, range(FIRST_BYTE_ID, FIRST_LEARNED_ID)
        self._pieces = pieces
        self._scores = {p.text: p.score for p in pieces if p.kind in (NORMAL, UNUSED)}
        self._ids = {p.text: i for i, p in enumerate(pieces) if p.kind in (NORMAL, UNUSED)}

    def parts(self, i: int) -> list[int]:
        """Ids of the two pieces that piece i is merged from; none for what is not merged."""
        piece = self._pieces[i]
        pair = _last_merge(piece.text, self._scores) if piece.kind in (NORMAL, UNUSED) else None
        # A part without an id is a character that is only known as bytes.
        return [self._ids[part] for part in pair or () if part in self._ids]

    def first(self) -> list[int]:
        """All ordinary pieces, the ones that merge first at the front."""
        ids = [i for i, piece in enumerate(self._pieces) if piece.kind == NORMAL]
        return sorted(ids, key=lambda i: (-self._pieces[i].score, i))


def _last_merge(text: str, scores: Mapping[str, float]) -> tuple[str, str] | None:
    """The pair whose merge completes a piece; None: it is a character, or is never completed."""
    symbols, last = list(text), None
    while len(symbols) > 1:
        ranked = [scores.get(a + b) for a, b in pairwise(symbols)]
        best = max((score for score in ranked if score is not None), default=None)
        if best is None:
            return None
        at = ranked.index(best)
        last = symbols[at], symbols[at + 1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return last


def _with_pieces(
    tokenizer: Tokenizer, pieces: list[Piece], kept_K: npt.NDArray[np.int64]
) -> Tokenizer:
    new_id = {old: new for new, old in enumerate(kept_K.tolist())}
    trimmed = Tokenizer.from_pieces(
        [pieces[i] for i in kept_K.tolist()],
        "the trimmed tokenizer",
        added_tokens=[replace(t, id=new_id[t.id]) for t in tokenizer.added_tokens],
    )
    template, stop_ids = tokenizer.chat_format
    return trimmed.with_chat_format(
        template,
        [new_id[i] for i in stop_ids if i in new_id],
        tokenizer.named_templates,
        tokenizer.token_names,
    )
