"""Converts Gemma's tokenizer to and from the metadata of a GGUF file.

GGUF stores pieces, scores and types like SentencePiece, with exceptions for llama.cpp's own
tokenizer (facts read from its convert_hf_to_gguf.py):

- ids 0-107 are control tokens, so that text only produces them if the caller allows it;
- pieces that are matched as a whole hold spaces rather than U+2581;
- every row of the embedding has a token: rows past the vocabulary are called [PADn].

Known differences in llama.cpp: it treats a literal U+2581 in a text as a space, and `</s>`, here
an HTML tag, as a control token that ends an answer.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemmule.checkpoints.gguf.header import Value
from gemmule.errors import TokenizerError
from gemmule.model.spm_model import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Piece
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_TEXT_ID, SPACE
from gemmule.model.tokenizer import Tokenizer

_MODEL, _PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
_TOKENS, _SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores"
_TYPES = "tokenizer.ggml.token_type"
_SENTENCEPIECE = "llama"  # llama.cpp's name for this kind of tokenizer
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
    if piece.kind == USER_DEFINED:
        return piece._replace(text=piece.text.replace(SPACE, " "))
    return piece


def _from_ggml(i: int, piece: Piece) -> Piece:
    """The original SentencePiece piece.

    The fixed symbols never merge, so their original scores and types are known, whatever the file
    says.
    """
    text, score, kind = piece
    if i < FIRST_BYTE_ID or kind == USER_DEFINED:
        text = text.replace(" ", SPACE)
    if i < FIRST_BYTE_ID:
        kind = (CONTROL, CONTROL, CONTROL, UNKNOWN)[i] if i < 4 else USER_DEFINED
        score = 0.0
    elif kind == CONTROL and _SYMBOL.fullmatch(text):
        kind, score = USER_DEFINED, 0.0
    return Piece(text, score, kind)


def survives(pieces: Sequence[Piece]) -> bool:
    """Whether a GGUF file preserves these pieces, as it does Gemma's."""
    return all(_from_ggml(i, _to_ggml(i, piece)) == piece for i, piece in enumerate(pieces))


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
    if metadata.get(_MODEL) != _SENTENCEPIECE:
        raise TokenizerError(
            f"{source}: {_MODEL} is {metadata.get(_MODEL)!r}; Gemma 2's is {_SENTENCEPIECE!r}"
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
    return Tokenizer.from_pieces(map(_from_ggml, range(len(pieces)), pieces), source)
