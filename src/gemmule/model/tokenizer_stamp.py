"""A note next to tokenizer.json that tokenizer.model, which is read faster, holds the same.

Reading a tokenizer.json of 256,000 pieces and comparing it with the tokenizer.model next to it
takes four times as long as reading the latter alone. Who writes a folder does so once and leaves a
stamp: the SHA-256 of both files, what the other files said about tokens, and the added tokens that
came of it. A stamp whose files have changed since counts for nothing.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from gemmule import files
from gemmule.model import tokenizer_json, tokenizer_model
from gemmule.model.added_tokens import AddedToken
from gemmule.model.spm_model import PieceModel
from gemmule.model.tokenizer_files import DeclaredTokens

FILE = "tokenizer_stamp.json"
_VERSION = 1  # changes whenever the reading of tokenizer.json may come to something else


def read(
    folder: Path, declared: DeclaredTokens
) -> tuple[PieceModel, tuple[AddedToken, ...]] | None:
    """Reads a stamped folder.

    Args:
        folder: the folder.
        declared: what its other files say about tokens.

    Returns:
        What the reading of its tokenizer.json comes to: the model, and the tokens that are not
        Gemma's own. None: there is no stamp, or it is one of other files.
    """
    try:
        stamp = files.read_json(folder / FILE)
        data = files.read_bytes(folder / tokenizer_model.FILE)
        if stamp["of"] != _of(folder, data, declared):
            return None
        return PieceModel.parse(data), tuple(AddedToken(**entry) for entry in stamp["added_tokens"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # the full reading says what is wrong, if it matters


def write(
    folder: Path, declared: DeclaredTokens, model: PieceModel, added: tuple[AddedToken, ...]
) -> None:
    """Stamps a folder, if its tokenizer.model is what the reading of its tokenizer.json came to.

    Args:
        folder: the folder.
        declared: what its other files say about tokens.
        model: the model that was read.
        added: the tokens that are not Gemma's own.
    """
    data = files.read_bytes(folder / tokenizer_model.FILE)
    if data == model.data:
        entries = [dataclasses.asdict(token) for token in added]
        stamp = {"of": _of(folder, data, declared), "added_tokens": entries}
        files.write_json(folder / FILE, stamp)


def _of(folder: Path, model: bytes, declared: DeclaredTokens) -> dict[str, object]:
    tokens = json.dumps(dataclasses.asdict(declared)).encode()
    return {
        "version": _VERSION,
        tokenizer_json.FILE: files.sha256_file(folder / tokenizer_json.FILE),
        tokenizer_model.FILE: hashlib.sha256(model).hexdigest(),
        "declared": hashlib.sha256(tokens).hexdigest(),
    }
