"""Tokens added to a vocabulary: found in text as the tokenizers library finds them.

It looks for added tokens before anything else, first for those that are not normalized, in the
text, and then for the normalized ones in what is left, after a space became U+2581. Of several at
one place the longest counts, and flags then widen or discard a match.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gemmule.errors import TokenizerError
from gemmule.model.gemma_layout import FIXED_PIECES
from gemmule.model.spm_model import CONTROL, NORMAL, USER_DEFINED
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, FIRST_TEXT_ID, SPACE


@dataclass(frozen=True)
class AddedToken:
    """A token that was added to a vocabulary; the flags are those of the tokenizers library.

    Attributes:
        content: text of the token.
        id: its id.
        special: a control token: text only produces it if the caller allows it.
        lstrip: whitespace before it belongs to it.
        rstrip: whitespace after it belongs to it.
        single_word: not matched inside a word.
        normalized: matched in normalized text, where a space is U+2581.
    """

    content: str
    id: int
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is matched wherever its text is, and nothing but its text."""
        return not (self.lstrip or self.rstrip or self.single_word)


class Splitter:
    """Cuts text into added tokens and the text between them."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        tokens = list(tokens)
        # A literal U+2581 in a text is never taken for a space, so that it comes back.
        self._passes = [
            _Pass({t.content: t for t in tokens if not t.normalized and SPACE not in t.content}),
            _Pass({t.content.replace(SPACE, " "): t for t in tokens if t.normalized}, spaces=False),
        ]

    def split(self, text: str) -> Iterator[int | str]:
        """The parts of `text` in their order: an id for each added token, else text."""
        first, second = self._passes
        for part in first.split(text):
            if isinstance(part, int):
                yield part
            else:
                yield from second.split(part)


class _Pass:
    """One search through a text; `spaces`: whether a space counts as whitespace."""

    def __init__(self, tokens: dict[str, AddedToken], spaces: bool = True) -> None:
        self._tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None
        self._whitespace = _WHITESPACE if spaces else _WHITESPACE - {" "}

    def split(self, text: str) -> Iterator[int | str]:
        if self._pattern is None:
            if text:
                yield text
            return
        done = 0
        for match in self._pattern.finditer(text):
            token, (start, stop) = self._tokens[match.group()], match.span()
            if token.single_word and (
                (start and _is_word(text[start - 1])) or (stop < len(text) and _is_word(text[stop]))
            ):
                continue
            if token.lstrip:
                while start > done and text[start - 1] in self._whitespace:
                    start -= 1
                start = max(start, done)
            if token.rstrip:
                while stop < len(text) and text[stop] in self._whitespace:
                    stop += 1
            if done < start:
                yield text[done:start]
            yield token.id
            done = stop
        if done < len(text):
            yield text[done:]


# Unicode's White_Space, which the library's \s matches; Python's has four more.
_WHITESPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
# What the library's \w matches: letters, marks, decimal digits, connectors, joiners, and symbols
# that Unicode calls alphabetic.
_WORD_CATEGORIES = {"Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Nd", "Pc", "Mn", "Mc", "Me"}
_OTHER_WORD = re.compile(
    "[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]"
)


def _is_word(character: str) -> bool:
    return unicodedata.category(character) in _WORD_CATEGORIES or bool(_OTHER_WORD.match(character))


def overlap(tokens: Iterable[str], symbols: Sequence[str]) -> bool:
    """Whether one of `tokens` can overlap with a symbol in a text, or holds one, or is in one."""
    if not symbols:
        return False
    heads = {s[:n] for s in symbols for n in range(1, len(s) + 1)}
    tails = {s[n:] for s in symbols for n in range(len(s))}
    inner = {tail[:n] for tail in tails for n in range(1, len(tail) + 1)}
    longest = max(map(len, symbols))
    whole = re.compile("|".join(map(re.escape, symbols)))
    return any(
        token in inner
        or whole.search(token)
        or any(token[:n] in tails or token[-n:] in heads for n in range(1, longest + 1))
        for token in tokens
    )


def add_tokens(
    tokens: Iterable[AddedToken], pieces: list[str], kinds: bytearray, source: str
) -> tuple[AddedToken, ...]:
    """Adds tokens to a vocabulary, in place.

    Args:
        tokens: tokens that a file declares, Gemma's own fixed ones possibly among them.
        pieces: the vocabulary, with Gemma's layout; new tokens are appended.
        kinds: type of each piece.
        source: the file, for messages.

    Returns:
        The tokens that are not Gemma's own; the others are matched by SentencePiece alone.

    Raises:
        TokenizerError: when an id is taken by another piece or leaves a gap.
    """
    by_id = {token.id: token for token in tokens}
    taken = set(pieces) if any(i >= len(pieces) for i in by_id) else set()
    own: dict[int, AddedToken] = {}
    for i in sorted(by_id):
        token = by_id[i]
        piece = token.content.replace(" ", SPACE)
        if i > len(pieces):
            raise TokenizerError(
                f"{source}: the added token {token.content!r:.80} has id {i}, and the tokens "
                f"before it end at {len(pieces) - 1}: ids may not leave a gap"
            )
        if i == len(pieces):
            # A space in a piece never matches by itself, so that such a piece is one of its own.
            pieces.append(token.content if piece in taken else piece)
            taken.add(pieces[-1])
            kinds.append(CONTROL if token.special else USER_DEFINED)
            own[i] = token
        elif pieces[i] not in (piece, token.content):
            raise TokenizerError(
                f"{source}: id {i} is {pieces[i]!r:.80} in the vocabulary, and the added token "
                f"{token.content!r:.80}"
            )
        elif FIRST_BYTE_ID <= i < FIRST_LEARNED_ID:
            raise TokenizerError(f"{source}: the byte {pieces[i]!r} is also an added token")
        elif token.special and kinds[i] == NORMAL:
            raise TokenizerError(
                f"{source}: {token.content!r:.80}, id {i}, is a special token and also an ordinary "
                "piece, so text could produce it: that is not supported"
            )
        elif not _built_in(token, kinds):
            own[i] = token
            if token.special:
                kinds[i] = CONTROL
            elif kinds[i] != NORMAL:
                kinds[i] = USER_DEFINED
    native = (
        {
            i: pieces[i].replace(SPACE, " ")
            for i in range(FIRST_TEXT_ID, len(pieces))
            if kinds[i] == USER_DEFINED and i not in own
        }
        if own
        else {}
    )
    contents = [token.content for token in own.values()]
    if not all(token.plain for token in own.values()) or overlap(contents, [*native.values()]):
        for i, text in native.items():  # then all are matched together, as the library does
            own[i] = by_id.get(i, AddedToken(text, i, normalized=True))
    return tuple(own[i] for i in sorted(own))


def _built_in(token: AddedToken, kinds: bytearray) -> bool:
    """Whether SentencePiece treats a piece of the vocabulary as the library does the token."""
    i = token.id
    if not token.plain:
        return False
    if i < FIRST_BYTE_ID and token.content == FIXED_PIECES[i]:
        if i >= FIRST_TEXT_ID and not token.special:
            # Not normalized, U+2581 never matches a space: merges build such a run.
            if token.normalized or SPACE not in token.content:
                kinds[i] = USER_DEFINED
            return True
        return i < FIRST_TEXT_ID
    if i < FIRST_LEARNED_ID or token.special or not token.normalized or kinds[i] == NORMAL:
        return False
    kinds[i] = USER_DEFINED
    return True
