"""Reads tokenizer.model: a SentencePiece model, and the tokens that files around it add to it."""

from pathlib import Path

import numpy as np

from gemmule import files
from gemmule.errors import TokenizerError
from gemmule.model import gemma_layout, tokenizer_json
from gemmule.model.added_tokens import AddedToken, add_tokens
from gemmule.model.spm_model import USER_DEFINED, PieceModel
from gemmule.model.spm_train import FIRST_TEXT_ID, SPACE
from gemmule.model.tokenizer_files import DeclaredTokens

FILE = "tokenizer.model"


def read(file: Path, declared: DeclaredTokens) -> tuple[PieceModel, tuple[AddedToken, ...]]:
    """Reads a tokenizer.model.

    Args:
        file: the file.
        declared: what the files around it say about tokens.

    Returns:
        The model, and the tokens that are not Gemma's own, which are among its pieces.

    Raises:
        TokenizerError: when it is missing or damaged, or not a Gemma 2 tokenizer.
    """
    try:
        data = files.read_bytes(file)
    except OSError as e:
        raise TokenizerError(
            f"cannot read a tokenizer at {file}: {e.strerror}; give a folder that holds "
            f"{tokenizer_json.FILE} or {FILE}, or such a file"
        ) from None
    model = checked(data, str(file))
    pieces, kinds = list(model.pieces), bytearray(model.kinds)
    renamed = [
        AddedToken(pieces[i].replace(SPACE, " "), i, normalized=True)
        for i in range(FIRST_TEXT_ID)
        if kinds[i] == USER_DEFINED and pieces[i] != gemma_layout.FIXED_PIECES[i]
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)} if declared.special else {}
    own = add_tokens(declared.on(vocabulary, renamed), pieces, kinds, str(file))
    if kinds != model.kinds:
        scores = np.zeros(len(pieces), np.float32)
        scores[: len(model.scores)] = model.scores
        model = PieceModel.build(pieces, scores, bytes(kinds))
    return model, own


def checked(model: bytes | PieceModel, source: str) -> PieceModel:
    """Parses a model and checks that it is a BPE with Gemma's layout.

    Args:
        model: the content of a tokenizer.model file, parsed or not.
        source: its origin, for messages.

    Raises:
        TokenizerError: when it is not.
    """
    parsed = model if isinstance(model, PieceModel) else _parse(model, source)
    problem = gemma_layout.problem(parsed)
    if problem:
        raise TokenizerError(f"{source} is not a Gemma tokenizer: {problem}")
    return parsed


def _parse(model: bytes, source: str) -> PieceModel:
    if files.begins_as_lfs_pointer(model):
        raise TokenizerError(f"{source} is {files.LFS_POINTER}")
    try:
        return PieceModel.parse(model)
    except ValueError:
        raise TokenizerError(
            f"{source} is not a SentencePiece model ({len(model)} bytes): it may be damaged or "
            "cut short"
        ) from None
