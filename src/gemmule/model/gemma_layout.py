"""Gemma's vocabulary layout: checks that a SentencePiece model has it."""

from collections.abc import Sequence

import numpy as np

from gemmule.model.spm_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    PieceModel,
)
from gemmule.model.spm_train import (
    BASIC_PIECES,
    END_OF_TURN_ID,
    FIRST_BYTE_ID,
    FIRST_LEARNED_ID,
    FIRST_TEXT_ID,
    SPACE,
    START_OF_TURN_ID,
    SYMBOLS,
)

BYTE_PIECES = tuple(f"<0x{i:02X}>" for i in range(256))
FIXED_PIECES = (*BASIC_PIECES, *SYMBOLS, *BYTE_PIECES)
_GEMMA3_START_OF_TURN_ID = 105


def problem(model: PieceModel) -> str | None:
    """Why a model is not a Gemma 2 tokenizer; None: it is one.

    Symbols, ids 4 to 216, may have other names: people rename <unused0> and its like.
    """
    return names_problem(model.pieces) or _kind_problem(model) or _spec_problem(model)


def has_gemma_turns(pieces: Sequence[str]) -> bool:
    """Whether Gemma's turn markers are where they belong, and were not renamed."""
    turns = (START_OF_TURN_ID, END_OF_TURN_ID)
    return all(pieces[i] == FIXED_PIECES[i] for i in turns)


def names_problem(pieces: Sequence[str]) -> str | None:
    """Why the texts of pieces are not those of a Gemma 2 tokenizer; None: they are."""
    if len(pieces) < FIRST_LEARNED_ID:
        return f"it has {len(pieces)} pieces and the fixed ones alone are {FIRST_LEARNED_ID}"
    if pieces[_GEMMA3_START_OF_TURN_ID] == "<start_of_turn>":
        return "it is that of Gemma 3, and only Gemma 2's is supported"
    for i in (*range(len(BASIC_PIECES)), *range(FIRST_BYTE_ID, FIRST_LEARNED_ID)):
        if pieces[i] != FIXED_PIECES[i]:
            return f"id {i} is {pieces[i]!r:.80} where {FIXED_PIECES[i]!r} belongs"
    return None


def _kind_problem(model: PieceModel) -> str | None:
    pieces, kinds = model.pieces, model.kinds
    if kinds[:4] != bytes((CONTROL, CONTROL, CONTROL, UNKNOWN)):
        return "its first four pieces are not marked as control pieces"
    for i in range(FIRST_BYTE_ID, FIRST_LEARNED_ID):
        if kinds[i] != BYTE:
            return f"{pieces[i]!r} is not marked as a byte"
    for i in range(4, FIRST_TEXT_ID):
        if kinds[i] not in (CONTROL, USER_DEFINED):  # text could produce any other kind
            return f"{pieces[i]!r:.80}, id {i}, is not marked as a symbol or control piece"
    for start, stop in ((4, FIRST_BYTE_ID), (FIRST_LEARNED_ID, len(pieces))):
        for kind in (BYTE, UNKNOWN):
            i = kinds.find(kind, start, stop)
            if i >= 0:
                return f"{pieces[i]!r:.80} is marked as a byte or as unknown"
    # A space spelled in bytes would be decoded as U+2581.
    if SPACE not in pieces or kinds[pieces.index(SPACE)] not in (NORMAL, USER_DEFINED):
        return "no piece of it stands for a single space"
    return None


def _spec_problem(model: PieceModel) -> str | None:
    trainer, normalizer = model.specs.trainer_spec, model.specs.normalizer_spec
    if trainer.model_type != BPE or not trainer.byte_fallback:
        return "it is not a BPE with byte fallback"
    if (
        normalizer.precompiled_charsmap
        or normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or trainer.treat_whitespace_as_suffix
    ):
        return "it changes text before encoding it (only identity normalization is allowed)"
    if not np.isfinite(model.scores).all():
        return "it has a score that is not a finite number"
    return None
