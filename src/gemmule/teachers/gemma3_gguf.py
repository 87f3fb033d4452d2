"""Gemma 3 text models in GGUF files as teachers: their weights in transformers' model."""

from pathlib import Path

import torch

from gemmule.checkpoints.gguf.gemma3 import Gemma3File
from gemmule.checkpoints.stored_tensor import few
from gemmule.errors import CheckpointError, first_line
from gemmule.model.foreign_layout import pieces_in_gemma_layout
from gemmule.teachers.transformers_model import TransformersTeacher, import_transformers
from gemmule.teachers.vocabulary_map import VocabularyMap, map_vocabulary

_HEAD = "lm_head.weight"  # transformers lists the tied embedding under this name, too


class Gemma3Vocabulary:
    """The vocabulary of a Gemma 3 in GGUF.

    Attributes:
        ids: id of each piece.
        tokenizer: the tokenizer with Gemma 2's layout, which splits text in the same way.

    Args:
        file: the open file.
        path: its path, for messages.

    Raises:
        TokenizerError: when it is not a tokenizer of Gemma's kind.
    """

    def __init__(self, file: Gemma3File, path: Path) -> None:
        self.ids = {piece.text: i for i, piece in enumerate(file.pieces)}
        self.tokenizer = pieces_in_gemma_layout(file.pieces, str(path))
        self._pieces = [piece.text for piece in self.tokenizer.pieces]

    def encode(self, text: str) -> list[int]:
        """The file's ids of a text, without <bos>."""
        return [self.ids[self._pieces[i]] for i in self.tokenizer.encode(text)]

    def in_gemma_layout(self) -> VocabularyMap:
        """The file's id of each token of `tokenizer`."""
        vocabulary = map_vocabulary(self.tokenizer, self.ids)
        assert vocabulary is not None  # it was made of these pieces
        return vocabulary


def load_gemma3(name: str, file: Gemma3File) -> TransformersTeacher:
    """Loads the model of an open file in fp32.

    Args:
        name: its location, as the user gave it.
        file: the open file.

    Raises:
        CheckpointError: when its settings are impossible, or its tensors are not those of such a
            model.
        MissingExtraError: when transformers is not installed.
    """
    transformers = import_transformers("a Gemma 3")
    try:
        config = transformers.Gemma3TextConfig(**file.settings)
        with torch.device("meta"):
            shapes = transformers.Gemma3ForCausalLM(config).state_dict()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as e:
        raise CheckpointError(f"{name} describes an impossible model: {first_line(e)}") from None
    wanted = {n: tuple(t.shape) for n, t in shapes.items() if n != _HEAD}
    stored = {f"model.{n}": tensor for n, tensor in file.tensors.items()}
    lacking = [n for n in wanted if n not in stored or stored[n].shape != wanted[n]]
    unknown = [n for n in stored if n not in wanted]
    if lacking or unknown:
        raise CheckpointError(
            f"{name} does not hold the tensors of a Gemma 3 text model: "
            f"{few([*lacking, *unknown])} missing, unexpected or of another shape"
        )
    weights = {n: t.copy(torch.float32, torch.device("cpu")) for n, t in stored.items()}
    model = transformers.Gemma3ForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32
    )
    return TransformersTeacher(name, model, len(file.pieces))
