"""Tokenizers of Gemma's kind with other ids, such as Gemma 3's, laid out like Gemma 2's.

They split text the same way: BPE with byte fallback, spaces as U+2581, no other change of the text.
What differs is which ids the control tokens, bytes and runs of white space have. With the ids that
Gemma 2 gives them, a student can be trained on the tokens of such a teacher; which of the teacher's
ids each token has, follows from the texts (gemmule.teachers.vocabulary_map).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import TokenizerError
from gemmule.model import tokenizer_json
from gemmule.model.gemma_layout import BYTE_PIECES, FIXED_PIECES
from gemmule.model.spm_model import BYTE, CONTROL, UNKNOWN, USER_DEFINED, Piece
from gemmule.model.spm_train import FIRST_BYTE_ID, FIRST_LEARNED_ID, FIRST_TEXT_ID
from gemmule.model.tokenizer import Tokenizer

_FIXED = frozenset(FIXED_PIECES)
_FIRST_KINDS = {0: CONTROL, 1: CONTROL, 2: CONTROL, 3: UNKNOWN}


def load_in_gemma_layout(path: Path) -> Tokenizer:
    """Reads a tokenizer of Gemma's kind and gives it Gemma 2's layout.

    Special tokens that Gemma 2 does not have are left out: text never becomes them.

    Args:
        path: a folder with a tokenizer, or a tokenizer.json.

    Returns:
        A Gemma 2 tokenizer as it is; else one with equal tokens for every text.

    Raises:
        TokenizerError: when there is none, or it splits or changes text in another way.
    """
    path = files.expand(path)
    file = path / tokenizer_json.FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".json":
        return Tokenizer.load(path)
    content = tokenizer_json.read_content(file)
    if _fixed_as_in_gemma2(tokenizer_json.vocabulary(content, str(file))):
        return Tokenizer.load(path)
    model, added = tokenizer_json.from_content(_relaid(content, str(file)), str(file))
    return Tokenizer(model, str(file), added_tokens=added)


def pieces_in_gemma_layout(pieces: Sequence[Piece], source: str) -> Tokenizer:
    """`load_in_gemma_layout` for the pieces of a SentencePiece model.

    Args:
        pieces: all pieces by id, with U+2581 for a space.
        source: their origin, for messages.

    Raises:
        TokenizerError: when it lacks a byte, or another piece that text always becomes in Gemma 2.
    """
    texts = {piece.text for piece in pieces}
    missing = [text for text in FIXED_PIECES[FIRST_TEXT_ID:] if text not in texts]
    if missing:
        raise TokenizerError(
            f"{source} is not a tokenizer of Gemma's kind: it has no piece {missing[0]!r}"
        )
    fixed = [
        Piece(text, 0.0, BYTE if i >= FIRST_BYTE_ID else _FIRST_KINDS.get(i, USER_DEFINED))
        for i, text in enumerate(FIXED_PIECES)
    ]
    others = [
        piece
        for piece in pieces
        if piece.text not in _FIXED and piece.kind not in (CONTROL, UNKNOWN, BYTE)
    ]
    return Tokenizer.from_pieces([*fixed, *others], source)


def _fixed_as_in_gemma2(vocab: Mapping[str, int]) -> bool:
    return vocab.get("<start_of_turn>") == Tokenizer.start_of_turn_id


def _relaid(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The content of a tokenizer.json with Gemma 2's fixed ids, the others in their order."""
    tokenizer_json.check_treatment(content, source)
    vocab = tokenizer_json.vocabulary(content, source)
    missing = [piece for piece in BYTE_PIECES if piece not in vocab]
    if missing:
        raise TokenizerError(
            f"{source} has no token for the byte {missing[0]}: text that no piece of it matches "
            "could not be encoded"
        )
    entries = tokenizer_json.added_entries(content, source)
    special = {entry.get("content") for entry in entries if entry.get("special")}
    elsewhere = special.union(FIXED_PIECES)
    texts = [*FIXED_PIECES, *(text for text in vocab if text not in elsewhere)]
    new_id = {text: i for i, text in enumerate(texts)}
    return {
        **content,
        "model": {**content["model"], "vocab": new_id},
        "added_tokens": [
            {**entry, "id": new_id[entry["content"]]}
            for entry in entries
            if _is_listed(entry.get("content"), new_id)
        ],
    }


def _is_listed(text: Any, new_id: Mapping[str, int]) -> bool:
    """Whether a token has to be matched as a whole: merges build other runs of white space, too."""
    if text not in new_id:
        return False
    return new_id[text] < FIRST_LEARNED_ID or not str(text).isspace()
