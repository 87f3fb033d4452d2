"""Builds a SentencePiece model from its pieces, for formats that store nothing else of it."""

from collections.abc import Iterable
from typing import NamedTuple

from sentencepiece import sentencepiece_model_pb2

# Piece types of ModelProto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2  # TrainerSpec.ModelType


class Piece(NamedTuple):
    """One entry of a vocabulary.

    Attributes:
        text: the piece, with U+2581 for a space.
        score: merge priority of an ordinary piece; the highest merges first.
        kind: piece type, one of the constants above.
    """

    text: str
    score: float
    kind: int


def build_model(pieces: Iterable[Piece]) -> bytes:
    """A serialized ModelProto with these pieces and Gemma's treatment of text.

    That means BPE with byte fallback and identity normalization: see spm_train.py.
    """
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for text, score, kind in pieces:
        proto.pieces.add(piece=text, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = BPE, len(proto.pieces)
    trainer.byte_fallback = trainer.split_digits = trainer.allow_whitespace_only_pieces = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = range(4)
    trainer.pad_piece, trainer.eos_piece = "<pad>", "<eos>"
    trainer.bos_piece, trainer.unk_piece = "<bos>", "<unk>"
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    model: bytes = proto.SerializeToString(deterministic=True)
    return model
