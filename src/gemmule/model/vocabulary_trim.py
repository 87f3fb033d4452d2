"""Trims a vocabulary to the pieces that a text needs.

BPE merges the best pair of neighbors again and again. If every piece that ever appears while a text
is encoded is kept, the trimmed vocabulary encodes the text the same way: at each step its possible
merges are some of the full vocabulary's, and the best of those is among them. The pieces that
appear are the tokens of the text and those that they are merged from; a piece is always merged from
the same two (merges.py says why). Text with other pieces falls apart into smaller ones, in the end
into bytes, so every string still round-trips.

Shapes: V tokens of the full vocabulary, K kept ones.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gemmule.errors import ConfigError
from gemmule.model.spm_model import NORMAL, UNUSED, USER_DEFINED, Piece
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, SPACE
from gemmule.model.tokenizer import Tokenizer

_ASCII = frozenset(map(chr, range(0x21, 0x7F))) | {SPACE}
_MOST_BYTES = 0.5  # of a text's tokens; above, the tokenizer has no pieces for its script


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
    _check(tokenizer, counts_V, size, coverage)
    pieces = tokenizer.pieces
    merges = _Merges(pieces)
    fixed = set(merges.closure(_always_kept(tokenizer, pieces)))
    by_count = np.argsort(-counts_V, kind="stable")
    by_count = by_count[counts_V[by_count] > 0].tolist()
    kept, covered = set(fixed), int(counts_V[list(fixed)].sum())
    for i in by_count:
        if covered >= coverage * counts_V.sum():
            break
        new = set(merges.closure([i])) - kept
        kept |= new
        covered += int(counts_V[list(new)].sum())
    if size is not None:
        if len(kept) > size:
            _check_size(size, len(fixed), len(kept), coverage)
            kept = merges.filled(fixed, by_count, size)
        kept = merges.filled(kept, merges.first(), size)
    kept_K = np.array(sorted(kept), np.int64)
    share = float(counts_V[kept_K].sum() / counts_V.sum())
    return Trimmed(_with_pieces(tokenizer, pieces, kept_K), kept_K, share)


def _check(
    tokenizer: Tokenizer, counts_V: npt.NDArray[np.int64], size: int | None, coverage: float
) -> None:
    if not 0.0 < coverage <= 1.0:
        raise ConfigError(f"coverage {coverage:g} is not a fraction above 0 and at most 1")
    if size is not None and size > tokenizer.vocab_size:
        raise ConfigError(
            f"size {size:,} is more than the tokenizer has: {tokenizer.vocab_size:,} tokens"
        )
    total = int(counts_V.sum())
    if not total:
        raise ConfigError("the text has no tokens: give the text that the model is to be used for")
    share = counts_V[FIRST_BYTE_ID:FIRST_LEARNED_ID].sum() / total
    if share > _MOST_BYTES:
        raise ConfigError(
            f"{share:.0%} of the text's tokens are single bytes: the tokenizer has no pieces for "
            "its script, and a trimmed one would have none either; train one on the text instead "
            "(gemmule tokenizer)"
        )


def _always_kept(tokenizer: Tokenizer, pieces: list[Piece]) -> Iterator[int]:
    yield from range(FIRST_LEARNED_ID)
    yield from (token.id for token in tokenizer.added_tokens)
    for i, piece in enumerate(pieces[FIRST_LEARNED_ID:], FIRST_LEARNED_ID):
        if piece.kind == USER_DEFINED or piece.text in _ASCII:
            yield i


def _check_size(size: int, fixed: int, needed: int, coverage: float) -> None:
    if coverage < 1.0:
        raise ConfigError(
            f"coverage {coverage:g} of this text takes {needed:,} tokens, more than the size of "
            f"{size:,}: leave out one of the two, raise size or lower coverage"
        )
    if fixed > size:
        raise ConfigError(
            f"size {size:,} is too small: the fixed tokens, added tokens and ASCII characters "
            f"alone are {fixed:,}"
        )


class _Merges:
    """How the pieces of a vocabulary are built."""

    def __init__(self, pieces: list[Piece]) -> None:
        self._pieces = pieces
        self._scores = {p.text: p.score for p in pieces if p.kind in (NORMAL, UNUSED)}
        self._ids = {p.text: i for i, p in enumerate(pieces) if p.kind in (NORMAL, UNUSED)}

    def closure(self, ids: Iterable[int]) -> list[int]:
        """The ids, and those of all pieces that they are merged from, the parts first."""
        order: dict[int, None] = {}
        stack = list(ids)[::-1]
        while stack:
            i = stack[-1]
            missing = [part for part in self._parts(i) if part not in order]
            if missing:
                stack += missing
            else:
                order[stack.pop()] = None
        return list(order)

    def filled(self, kept: set[int], candidates: Iterable[int], size: int) -> set[int]:
        """The kept ids and as many candidates, in order, as fit with their parts into `size`."""
        kept = set(kept)
        for i in candidates:
            if len(kept) == size:
                break
            new = set(self.closure([i])) - kept
            if len(kept) + len(new) <= size:
                kept |= new
        return kept

    def first(self) -> list[int]:
        """All ordinary pieces, the ones that merge first at the front."""
        ids = [i for i, piece in enumerate(self._pieces) if piece.kind == NORMAL]
        return sorted(ids, key=lambda i: (-self._pieces[i].score, i))

    def _parts(self, i: int) -> list[int]:
        """Ids of the two pieces that piece i is merged from; none for what is not merged."""
        piece = self._pieces[i]
        pair = _last_merge(piece.text, self._scores) if piece.kind in (NORMAL, UNUSED) else None
        # A part without an id is a character that is only known as bytes.
        return [self._ids[part] for part in pair or () if part in self._ids]


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
