"""The full tokenizer of a model that a user names, to be trimmed: of Gemma's kind, or any BPE."""

import json
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.checkpoints.file_kinds import kind_of
from gemmule.checkpoints.gguf.gemma3 import ARCHITECTURE as GEMMA3
from gemmule.checkpoints.gguf.gemma3 import architecture_of, open_gemma3
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.locate import locate
from gemmule.checkpoints.other_models import GEMMA2
from gemmule.errors import CheckpointError, TokenizerError, first_line
from gemmule.model import tokenizer_json
from gemmule.model.bpe_trim import BpeFile
from gemmule.model.foreign_layout import load_in_gemma_layout, pieces_in_gemma_layout
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.transformers_model import REFUSALS, import_transformers

_FILES = (tokenizer_json.FILE, "tokenizer.model")


def gemma_tokenizer(name: str) -> Tokenizer:
    """A tokenizer of Gemma's kind, with Gemma 2's ids for the fixed tokens.

    Args:
        name: a folder with a tokenizer, its file, or a model: run, folder, GGUF file or hub id.

    Raises:
        TokenizerError: when there is none, or it is of another kind.
        CheckpointError: when there is nothing under that name.
        MissingExtraError: when the package that reads the file is not installed.
    """
    path = _found(name)
    if _gguf(path):
        if architecture_of(path) == GEMMA3:
            with open_gemma3(path) as file:
                return pieces_in_gemma_layout(file.pieces, name)
        with open_checkpoint(path) as checkpoint:
            return checkpoint.tokenizer
    return load_in_gemma_layout(path)


def any_bpe(name: str) -> tuple[BpeFile, Path | None] | None:
    """A BPE tokenizer of another family than Gemma's, from tokenizer.json or GGUF.

    Args:
        name: as for gemma_tokenizer.

    Returns:
        The tokenizer, and the folder of files around it, if it has one; None when it is of Gemma's
        kind, or a tokenizer.model, which gemma_tokenizer reads.

    Raises:
        TokenizerError: when it is no BPE, or damaged.
        CheckpointError: when there is nothing under that name.
        MissingExtraError: when the package that reads the file is not installed.
    """
    path = _found(name)
    folder = None
    if _gguf(path):
        content = _content_of_gguf(path)
    else:
        file = path / tokenizer_json.FILE if path.is_dir() else path
        if file.suffix != ".json" or not file.is_file():
            return None
        content, folder = tokenizer_json.read_content(file), file.parent
    if content is None or _is_gemmas(content, name):
        return None
    return BpeFile(content, name), folder


def _found(name: str) -> Path:
    """The folder or file with the tokenizer."""
    path = files.expand(Path(name))
    if path.is_dir():
        for folder in (path, path / "model", path / "tokenizer"):
            if any((folder / file).is_file() for file in _FILES):
                return folder
    elif path.is_file() and path.suffix in {".json", ".model"}:
        return path
    located = locate(name)
    return located.path


def _gguf(path: Path) -> bool:
    kind = kind_of(path) if path.is_file() else None
    return kind is not None and kind.format == "gguf"


def _is_gemmas(content: dict[str, Any], source: str) -> bool:
    try:
        tokenizer_json.check_treatment(content, source)
    except TokenizerError:
        return False
    return True


def _content_of_gguf(path: Path) -> dict[str, Any] | None:
    """What transformers makes of the vocabulary in a GGUF file; None: a Gemma's."""
    if architecture_of(path) in {GEMMA2, GEMMA3}:
        return None
    transformers = import_transformers("a tokenizer in a GGUF file")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        content = json.loads(tokenizer.backend_tokenizer.to_str())
    except REFUSALS as e:
        raise CheckpointError(
            f"transformers cannot read the tokenizer in {path} ({first_line(e)})"
        ) from None
    vocab = content["model"].get("vocab", {})
    # transformers adds tokens of its own that the file does not have.
    added = [entry for entry in content["added_tokens"] if entry["content"] in vocab]
    return {**content, "added_tokens": added}
