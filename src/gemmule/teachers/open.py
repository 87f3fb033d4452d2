"""Opens the teacher that a user names."""

import torch

from gemmule.checkpoints.gguf.gemma3 import ARCHITECTURE as GEMMA3
from gemmule.checkpoints.gguf.gemma3 import architecture_of, open_gemma3
from gemmule.checkpoints.hf.config import read_object
from gemmule.checkpoints.load import open_checkpoint
from gemmule.checkpoints.locate import Located, locate
from gemmule.checkpoints.other_models import GEMMA2, model_type_of
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.teachers.any_tokenizer import OwnTokenizer, TransformersTokenizer
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.gemma3_gguf import Gemma3Vocabulary, load_gemma3
from gemmule.teachers.mapped import MappedTeacher
from gemmule.teachers.same_tokenizer import differing, other_tokenizer, part_of
from gemmule.teachers.teacher import LocalTeacher
from gemmule.teachers.transformers_model import (
    TransformersTeacher,
    bos_before_text,
    load_tokenizer,
)


def is_address(name: str) -> bool:
    """Whether a teacher's name is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def open_teacher(name: str, dataset: Dataset, seq_len: int) -> LocalTeacher:
    """Loads a teacher that has the data's tokens, and perhaps more of them.

    The data's tokenizer may be a trimmed form of the teacher's (gemmule trim, gemmule tokenizer
    trim): then the teacher's distribution is conditioned on the data's tokens.

    Args:
        name: run, folder, file or hub id: a Gemma 2 in any format, or a model that transformers
            runs: any other causal language model in Hugging Face's layout, or a Gemma 3 in GGUF.
        dataset: the data that it predicts.
        seq_len: tokens that it must be able to read in one sequence.

    Raises:
        TokenizerError: when it splits the data's text into other tokens.
        CheckpointError: when there is no usable model.
        ConfigError: when its context is shorter than `seq_len`, and for the address of a server.
        MissingExtraError: when transformers is needed and not installed.
    """
    _check_local(name)
    located = locate(name)
    if is_gemma3_gguf(located):
        teacher = _open_gemma3(name, located, dataset)
    elif is_gemma(located):
        teacher = _open_gemma(name, dataset)
    else:
        teacher = _open_other(name, located, dataset)
    check_context(teacher, seq_len)
    return teacher


def _open_gemma(name: str, dataset: Dataset) -> LocalTeacher:
    with open_checkpoint(name) as checkpoint:
        theirs = checkpoint.tokenizer
        if theirs.fingerprint == dataset.tokenizer.fingerprint:
            return GemmaTeacher(name, checkpoint.load(torch.float32))
        ids = {piece.text: i for i, piece in enumerate(theirs.pieces)}
        vocabulary = part_of(dataset, ids, theirs.encode)
        if vocabulary is not None:
            teacher = GemmaTeacher(name, checkpoint.load(torch.float32))
            return MappedTeacher(teacher, vocabulary)
    return GemmaTeacher.open(name, dataset)  # says how the tokenizers differ


def _open_gemma3(name: str, located: Located, dataset: Dataset) -> LocalTeacher:
    with open_gemma3(located.path) as file:
        theirs = Gemma3Vocabulary(file, located.path)
        vocabulary = part_of(dataset, theirs.ids, theirs.encode)
        if vocabulary is None:
            raise other_tokenizer(name, dataset, "it splits the text in another way")
        return MappedTeacher(load_gemma3(name, file), vocabulary)


def _open_other(name: str, located: Located, dataset: Dataset) -> LocalTeacher:
    theirs = load_tokenizer(located.path)
    difference = differing(dataset, theirs)
    if difference is None:
        size = dataset.tokenizer.vocab_size
        return TransformersTeacher.open(name, located.path, size, bos_before_text(theirs))

    def encode(text: str) -> list[int]:
        return [int(i) for i in theirs(text, add_special_tokens=False).input_ids]

    vocabulary = part_of(dataset, theirs.get_vocab(), encode)
    if vocabulary is None:
        raise other_tokenizer(name, dataset, difference)
    teacher = TransformersTeacher.open(name, located.path, len(theirs))
    return MappedTeacher(teacher, vocabulary)


def open_foreign_teacher(name: str, seq_len: int) -> LocalTeacher:
    """Loads a teacher with any tokenizer, and that tokenizer.

    Args:
        name: as in open_teacher.
        seq_len: tokens, in the student's tokenizer, that it must be able to read in one sequence;
            in its own tokenizer they may be more.

    Raises:
        TokenizerError: when its tokens do not add up to the text.
        CheckpointError: when there is no usable model.
        ConfigError: when its context is shorter than `seq_len`, and for the address of a server.
        MissingExtraError: when transformers is needed and not installed.
    """
    _check_local(name)
    located = locate(name)
    teacher: LocalTeacher
    if is_gemma3_gguf(located):
        with open_gemma3(located.path) as file:
            whole = Gemma3Vocabulary(file, located.path)
            teacher = MappedTeacher(load_gemma3(name, file), whole.in_gemma_layout())
            teacher.tokenizer = OwnTokenizer(whole.tokenizer)
    elif is_gemma(located):
        with open_checkpoint(name) as checkpoint:
            teacher = GemmaTeacher(name, checkpoint.load(torch.float32))
            teacher.tokenizer = OwnTokenizer(checkpoint.tokenizer)
    else:
        theirs = load_tokenizer(located.path)
        tokenizer = TransformersTokenizer(name, theirs)  # checked before a large model is loaded
        bos = bos_before_text(theirs)
        teacher = TransformersTeacher.open(name, located.path, len(theirs), bos)
        teacher.tokenizer = tokenizer
    check_context(teacher, seq_len)
    return teacher


def _check_local(name: str) -> None:
    if is_address(name):
        raise ConfigError(
            f"{name} is a server, which gives only the most likely tokens, and would have to give "
            "them again for each student: record it first (gemmule record), then train on the "
            "record with --targets"
        )


def is_gemma3_gguf(located: Located) -> bool:
    """Whether a checkpoint is a GGUF file of a Gemma 3, which transformers runs."""
    return located.format == "gguf" and architecture_of(located.path) == GEMMA3


def is_gemma(located: Located) -> bool:
    """Whether gemmule loads a checkpoint itself."""
    folder = located.path if located.path.is_dir() else located.path.parent
    config = folder / "config.json"
    if located.format not in {"hf", "torch"} or (
        located.format == "torch" and not config.is_file()
    ):
        return True
    return model_type_of(read_object(config)) == GEMMA2


def check_context(teacher: LocalTeacher, seq_len: int) -> None:
    """Refuses sequences that are too long for a teacher.

    Raises:
        ConfigError: when they are longer than its context.
    """
    if teacher.context is not None and seq_len > teacher.context:
        raise ConfigError(
            f"seq_len = {seq_len} is longer than the teacher's context of {teacher.context} "
            "tokens: shorten it"
        )
