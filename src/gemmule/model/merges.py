"""Recovers SentencePiece's scores from the ranked merges of a tokenizer.json.

Both kinds of BPE repeat: of all pairs of neighbors that may merge, take the best, and of equally
good ones the leftmost. The tokenizers library allows the pairs that it lists and takes the lowest
rank. SentencePiece allows every pair whose concatenation is a piece, and takes the highest score
of that piece.

Why scores can stand for ranks. Take a text, and a part of it that no merge has crossed so far. The
merges within the part were those that encoding the part alone begins with, because the best pair of
the whole that lies in the part is the best of the part. So if two neighbors A and B are ever found
where A+B is a piece P, then encoding P alone passes through A, B as its last but one state. That
run is unique: a piece has at most one pair that is ever merged, however many are listed, and two
overlapping pairs never compete for one piece. Hence

- if encoding every piece alone yields that piece, then scores in the order of those last merges
  give equal ids for every text; and a piece that is never reached may be UNUSED with the lowest
  score, which SentencePiece splits again;
- if all pairs that concatenate to a piece are listed, one after the other, both algorithms have
  the same choices in the same order, and no piece needs a look.

Converters from SentencePiece list all pairs; those who train with the tokenizers library list one
for each piece.
"""

import hashlib
import math
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gemmule.errors import TokenizerError
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, FIRST_TEXT_ID

# SHA-256 of Gemma's own merges, in the files that Google publishes and in those that we write from
# its tokenizer.json and its tokenizer.model, each with the ids that they build in their order: runs
# of newlines and spaces, the first learned piece, runs of tabs, all other learned pieces. Nearly
# every file has them, and half a million pairs take a while to check.
_RUNS = (range(139, 169), range(473, 474), range(255_969, 255_999), range(474, 235_248))
_PUBLISHED_MERGES: Mapping[str, tuple[range, ...]] = {
    "62cbca214240356dc796ec7677bdb858719cd66b4a2b8234790bd2a928f248af": (range(109, 139), *_RUNS),
    "242dae716c12ca255c6a4dbdfb27376dc6dce273691b20625354f6bd89f95523": _RUNS,
    "e2cfdfcee55c90bd2cdf3b333308935311d87e4d767d9693d794b7e0f7cadceb": (range(473, 235_248),),
}
_PUBLISHED_VOCABULARY = "dfa799ee23adfcb498ac16831c4525bfd3971e493595f185bf0e10884851ddfc"
_PUBLISHED_SIZE = 256_000
_TAB_ID = FIRST_BYTE_ID + 9
_MAX_PIECE = 256  # characters of a piece that merges build; Gemma's longest has 31


@dataclass(frozen=True)
class MergeOrder:
    """The order in which a BPE builds its pieces.

    Attributes:
        order: ids of the pieces that merges build, the first merged first. Other pieces of several
            characters are never built.
    """

    order: npt.NDArray[np.int64]


def published_order(merges: bytes) -> MergeOrder | None:
    """The order of merges if they are Gemma's own, in any of the forms that tokenizer.json has.

    Args:
        merges: the list as it stands in the file. How a pair is written, and the order of the
            pairs that build one piece, make no difference.
    """
    text = merges.translate(None, b' \t\r\n,"[]')
    runs = _PUBLISHED_MERGES.get(hashlib.sha256(text).hexdigest())
    if runs is None:
        return None
    return MergeOrder(np.concatenate([np.array(run, np.int64) for run in runs]))


def is_published(vocab: Collection[str], order: MergeOrder) -> bool:
    """Whether `vocab`, the pieces by id, is the vocabulary that belongs to Gemma's own merges.

    Control symbols and bytes take no part in merges, and may have other names.
    """
    if len(vocab) != _PUBLISHED_SIZE:
        return False
    pieces = list(vocab)
    if order.order[0] != FIRST_LEARNED_ID and pieces[_TAB_ID] != "\t":
        return False  # tabs could not merge
    merged = [*pieces[FIRST_TEXT_ID:FIRST_BYTE_ID], *pieces[FIRST_LEARNED_ID:]]
    return hashlib.sha256("\n".join(merged).encode()).hexdigest() == _PUBLISHED_VOCABULARY


def merge_order(
    vocab: Mapping[str, int], lefts: Sequence[str], rights: Sequence[str], source: str
) -> MergeOrder:
    """Finds the order of merging that gives the same ids as the listed pairs do.

    Args:
        vocab: id of each piece.
        lefts: left part of each pair, in the order of their ranks.
        rights: right part of each pair.
        source: the file, for messages.

    Raises:
        TokenizerError: when a pair names an unknown piece, or builds one.
    """
    products = [left + right for left, right in zip(lefts, rights, strict=True)]
    try:
        ids = np.fromiter(map(vocab.__getitem__, products), np.int64, len(products))
        parts_known = all(map(vocab.__contains__, lefts)) and all(map(vocab.__contains__, rights))
    except KeyError:
        parts_known = False
    if not parts_known:
        for pair in zip(lefts, rights, strict=True):
            unknown = [piece for piece in (*pair, "".join(pair)) if piece not in vocab]
            if unknown:
                raise TokenizerError(
                    f"{source}: the merge {' '.join(pair)!r:.80} needs {unknown[0]!r:.80}, which "
                    "is not in the vocabulary"
                )
    longest = max(products, key=len, default="")
    if len(longest) > _MAX_PIECE:
        raise TokenizerError(
            f"{source}: merges build a piece of {len(longest)} characters, {longest!r:.40}…, and "
            f"at most {_MAX_PIECE} are supported"
        )
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    order = ids[starts]
    if len(np.unique(order)) == len(order):
        pieces = [products[i] for i in starts.tolist()]
        if _all_listed(vocab, pieces, lefts, rights):
            return MergeOrder(order)
    return _by_encoding(vocab, lefts, rights)


def _all_listed(
    vocab: Container[str], pieces: list[str], lefts: Sequence[str], rights: Sequence[str]
) -> bool:
    """Whether every pair of symbols that concatenates to one of `pieces` is listed, once."""
    symbols = set().union(*pieces)
    if not all(map(vocab.__contains__, symbols)):
        return False
    symbols.update(pieces)
    if not (symbols.issuperset(lefts) and symbols.issuperset(rights)):
        return False
    count = 0
    for piece in pieces:
        for cut in range(1, len(piece)):
            count += piece[:cut] in vocab and piece[cut:] in vocab
    return count == len(lefts) == len(set(zip(lefts, rights, strict=True)))


def _by_encoding(
    vocab: Mapping[str, int], lefts: Sequence[str], rights: Sequence[str]
) -> MergeOrder:
    """Encodes each piece alone, to see whether and how it is reached."""
    # Of a pair that is listed twice the tokenizers library keeps the last rank.
    ranks = {pair: rank for rank, pair in enumerate(zip(lefts, rights, strict=True))}
    pieces = {vocab[left + right]: left + right for left, right in ranks}
    reached = []
    for piece_id, piece in pieces.items():
        known = all(map(vocab.__contains__, piece))
        rank = _last_merge(piece, ranks) if known else None
        if rank is not None:
            reached.append((rank, piece_id))
    order = [piece_id for _, piece_id in sorted(reached)]
    return MergeOrder(np.array(order, np.int64))


def _last_merge(piece: str, ranks: Mapping[tuple[str, str], int]) -> float | None:
    """Rank of the merge that completes `piece`; None: encoding it ends with several symbols."""
    symbols = list(piece)
    best = None
    while len(symbols) > 1:
        pairs = [ranks.get(pair, math.inf) for pair in pairwise(symbols)]
        best = min(pairs)
        if best == math.inf:
            return None
        at = pairs.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return best
