"""From what a user calls a teacher to the teacher."""

from typing import Any

import torch

from gemmule.checkpoints.hf.config import read_object
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.locate import Located, locate
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.pieces import OwnPieces, TransformersPieces
from gemmule.teachers.same_tokenizer import check_same
from gemmule.teachers.teacher import LocalTeacher
from gemmule.teachers.transformers_model import TransformersTeacher, load_tokenizer


def is_address(name: str) -> bool:
    """Whether a teacher is named by the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def open_teacher(name: str, dataset: Dataset, seq_len: int) -> LocalTeacher:
    """Loads a teacher that chooses among the data's pieces.

    Args:
        name: run, folder, file or hub id: a Gemma 2 in any format, or any other causal language
            model in Hugging Face's layout, which transformers runs.
        dataset: the data that it is to speak about.
        seq_len: tokens that it has to see together.

    Raises:
        TokenizerError: when its ids are not the data's.
        CheckpointError: when there is no usable model.
        ConfigError: when its context is shorter than `seq_len`, and for a server's address.
        MissingExtraError: when transformers is needed and not installed.
    """
    _check_local(name)
    found = locate(name)
    teacher: LocalTeacher
    if is_gemma(found):
        teacher = GemmaTeacher.open(name, dataset)
    else:
        check_same(name, dataset, load_tokenizer(found.path))
        teacher = TransformersTeacher.open(name, found.path, dataset.tokenizer.vocab_size)
    check_context(teacher, seq_len)
    return teacher


def open_foreign_teacher(name: str, seq_len: int) -> LocalTeacher:
    """Loads a teacher whatever its tokenizer is, and with it that tokenizer.

    Args:
        name: see open_teacher.
        seq_len: tokens, the student's, that it has to see together; its own may be more.

    Raises:
        TokenizerError: when its pieces do not add up to the text.
        CheckpointError: when there is no usable model.
        ConfigError: when its context is shorter than `seq_len`, and for a server's address.
        MissingExtraError: when transformers is needed and not installed.
    """
    _check_local(name)
    found = locate(name)
    teacher: LocalTeacher
    if is_gemma(found):
        with open_checkpoint(name) as checkpoint:
            teacher = GemmaTeacher(name, checkpoint.load(torch.float32))
            teacher.pieces = OwnPieces(checkpoint.tokenizer)
    else:
        tokenizer = load_tokenizer(found.path)
        pieces = TransformersPieces(name, tokenizer)  # in no time, and the model may be large
        teacher = TransformersTeacher.open(name, found.path, len(tokenizer))
        teacher.pieces = pieces
    check_context(teacher, seq_len)
    return teacher


def _check_local(name: str) -> None:
    if is_address(name):
        raise ConfigError(
            f"{name} is a server, which says only what is likeliest, and over and over for each "
            "student: record it first (gemmule record), then train on the record with --targets"
        )


def is_gemma(found: Located) -> bool:
    """Whether gemmule loads a checkpoint itself."""
    if found.format != "hf":
        return True
    config: dict[str, Any] = read_object(found.path / "config.json")
    return config.get("model_type") == "gemma2"


def check_context(teacher: LocalTeacher, seq_len: int) -> None:
    """Refuses rows that a teacher cannot see together.

    Raises:
        ConfigError: when they are longer than its context.
    """
    if teacher.context is not None and seq_len > teacher.context:
        raise ConfigError(
            f"seq_len = {seq_len} is longer than the teacher's context of {teacher.context} "
            "tokens: shorten it"
        )
