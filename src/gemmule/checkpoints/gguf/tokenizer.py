"""Converts Gemma's tokenizer to and from the metadata of a GGUF file.

GGUF stores pieces, scores and types like SentencePiece, with exceptions for llama.cpp's own
tokenizer (facts read from its convert_hf_to_gguf.py):

- ids 0-107 are control tokens, so that text only produces them if the caller allows it;
- pieces that are matched as a whole hold spaces rather than U+2581;
- every row of the embedding has a token: rows past the vocabulary are called [PADn];
- how an added token is matched (white space around it, whole words) has no place: gemmule writes it
  under a key of its own, and llama.cpp matches the bare text.

Known differences in llama.cpp: it treats a literal U+2581 in a text as a space, and `</s>`, here
an HTML tag, as a control token that ends an answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gemmule.checkpoints.gguf.header import Value
from gemmule.errors import TokenizerError
from gemmule.model.added_tokens import AddedToken
from gemmule.model.spm_model import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, FIRST_TEXT_ID, SPACE
from gemmule.model.tokenizer import Tokenizer
from gemmule.model.tokenizer_files import added_token

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores"
_TYPES = "tokenizer.ggml.token_type"
_SENTENCEPIECE = "llama"  # llama.cpp's name for this kind of tokenizer
_ADDED = "gemmule.added_tokens"
_PAD_SCORE = -10000.0
# Symbols past the fixed ids that llama.cpp's converter makes control tokens because of their names.
_SYMBOL = re.compile(r"<unused\d+>")


def to_metadata(pieces: Sequence[Piece], rows: int) -> dict[str, Any]:
    """The metadata of a vocabulary, for an embedding of `rows` rows.

    Raises:
        TokenizerError: when there are more pieces than rows.
    """
    if len(pieces) > rows:
        raise TokenizerError(
            f"the tokenizer has {len(pieces)} pieces and the embedding only {rows} rows: they do "
            "not belong together"
        )
    tokens = [*map(_to_ggml, range(len(pieces)), pieces)]
    tokens += [Piece(f"[PAD{i}]", _PAD_SCORE, UNUSED) for i in range(len(pieces), rows)]
    return {
        _MODEL: _SENTENCEPIECE,
        _PRE: "default",
        _TOKENS: [token.text.encode() for token in tokens],
        _SCORES: [token.score for token in tokens],
        _TYPES: [token.kind for token in tokens],
    }


def _to_ggml(i: int, piece: Piece) -> Piece:
    if i < FIRST_TEXT_ID:
        return piece._replace(kind=UNKNOWN if piece.kind == UNKNOWN else CONTROL)
    if piece.kind in (CONTROL, USER_DEFINED):
        return piece._replace(text=piece.text.replace(SPACE, " "))
    return piece


def _from_ggml(i: int, piece: Piece) -> Piece:
    """The original SentencePiece piece.

    The fixed symbols never merge, so their original scores and types are known, whatever the file
    says. Only runs of spaces may: tokenizer.json's are built by merges, before all others.
    """
    text, score, kind = piece
    if FIRST_TEXT_ID <= i < FIRST_BYTE_ID and kind == NORMAL and score > 0:
        return piece
    if i < FIRST_BYTE_ID or kind in (CONTROL, USER_DEFINED):
        text = text.replace(" ", SPACE)
    if i < FIRST_BYTE_ID:
        kind = (CONTROL, CONTROL, CONTROL, UNKNOWN)[i] if i < 4 else USER_DEFINED
        score = 0.0
    elif kind == CONTROL and _SYMBOL.fullmatch(text):
        kind, score = USER_DEFINED, 0.0
    return Piece(text, score, kind)


def added_to_metadata(added: Sequence[AddedToken]) -> dict[str, Any]:
    """The metadata of added tokens; none without them."""
    return {_ADDED: json.dumps([asdict(token) for token in added])} if added else {}


def survives(pieces: Sequence[Piece], added: Sequence[AddedToken]) -> bool:
    """Whether a GGUF file preserves these pieces, as it does Gemma's."""
    back = [_from_ggml(i, _to_ggml(i, piece)) for i, piece in enumerate(pieces)]
    return _with_added(back, added) == list(pieces)


def _with_added(pieces: Sequence[Piece], added: Sequence[AddedToken]) -> list[Piece]:
    """The pieces with the kinds that added tokens give them."""
    changed = list(pieces)
    for token in added:
        if changed[token.id].kind != NORMAL:
            kind = CONTROL if token.special else USER_DEFINED
            changed[token.id] = changed[token.id]._replace(kind=kind)
    return changed


def has_tokenizer(metadata: Mapping[str, Value]) -> bool:
    """Whether the metadata holds a vocabulary."""
    return _TOKENS in metadata


def from_metadata(metadata: Mapping[str, Value], rows: int, source: str) -> Tokenizer:
    """The tokenizer in a GGUF file, with the `fingerprint` of the original one.

    Args:
        metadata: metadata of the file.
        rows: rows of the embedding, the limit of the number of tokens.
        source: the file, for messages.

    Raises:
        TokenizerError: when keys are missing or wrong, or it is not Gemma's tokenizer.
    """
    pieces = stored_pieces(metadata, rows, source)
    originals = [*map(_from_ggml, range(len(pieces)), pieces)]
    added = _added(metadata.get(_ADDED), originals, source)
    return Tokenizer.from_pieces(_with_added(originals, added), source, added_tokens=added)


def stored_pieces(metadata: Mapping[str, Value], rows: int, source: str) -> list[Piece]:
    """The pieces of a SentencePiece vocabulary as a GGUF file spells them, without padding rows.

    Arguments and errors are those of `from_metadata`, for any Gemma.
    """
    if metadata.get(_MODEL) != _SENTENCEPIECE:
        raise TokenizerError(
            f"{source}: {_MODEL} is {metadata.get(_MODEL)!r}; Gemma's is {_SENTENCEPIECE!r}"
        )
    tokens = metadata.get(_TOKENS)
    scores, kinds = metadata.get(_SCORES), metadata.get(_TYPES)
    if not isinstance(tokens, list):
        raise TokenizerError(f"{source}: {_TOKENS} is missing or not an array of strings")
    if len(tokens) > rows:
        raise TokenizerError(f"{source} has {len(tokens)} tokens and {rows} embedding rows")
    for key, values in ((_SCORES, scores), (_TYPES, kinds)):
        if not isinstance(values, np.ndarray) or len(values) != len(tokens):
            raise TokenizerError(f"{source}: {key} is missing or not {len(tokens)} numbers")
    assert isinstance(scores, np.ndarray)
    assert isinstance(kinds, np.ndarray)
    try:
        texts = [token.decode() for token in tokens]
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{source}: a token is not UTF-8: {e.object[:40]!r}") from None
    pieces = list(map(Piece, texts, scores.tolist(), kinds.tolist()))
    while pieces and pieces[-1].kind == UNUSED and pieces[-1].text == f"[PAD{len(pieces) - 1}]":
        pieces.pop()
    return pieces


def _added(stored: Value | None, pieces: Sequence[Piece], source: str) -> list[AddedToken]:
    """The added tokens that a file names, or else those at the end of its vocabulary."""
    if stored is None:
        end = len(pieces)
        while end > FIRST_LEARNED_ID and _looks_added(pieces[end - 1]):
            end -= 1
        return [
            AddedToken(
                piece.text.replace(SPACE, " "),
                i,
                special=piece.kind == CONTROL,
                normalized=piece.kind != CONTROL,
            )
            for i, piece in enumerate(pieces[end:], end)
        ]
    try:
        entries = json.loads(stored) if isinstance(stored, str) else None
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TokenizerError(f"{source}: {_ADDED} is not a list of tokens")
    added = [added_token(entry, f"{source}: {_ADDED}") for entry in entries]
    for token in added:
        texts = (token.content, token.content.replace(" ", SPACE))
        if token.id >= len(pieces) or pieces[token.id].text not in texts:
            raise TokenizerError(
                f"{source}: {_ADDED} names {token.content!r:.80}, id {token.id}, which is not a "
                "token of its vocabulary"
            )
    return added


def _looks_added(piece: Piece) -> bool:
    return piece.kind in (CONTROL, USER_DEFINED) and not _SYMBOL.fullmatch(piece.text)
