"""SentencePiece's ModelProto as arrays: read in one pass, written without a message per piece.

Gemma's vocabulary has 256,000 pieces, and protobuf's Python classes make an object of each. Pieces
in the form that every writer uses are found by numpy, and their texts decoded when they are asked
for; any other file goes through protobuf.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

# Piece types of ModelProto.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2  # TrainerSpec.ModelType
# Tags of the wire format: ModelProto.pieces and SentencePiece.piece, .score, .type.
_MESSAGE, _TEXT, _SCORE, _KIND = 0x0A, 0x0A, 0x15, 0x18
_HEAD, _TAIL = 4, 7  # bytes before a text of up to 118 bytes, and of a score and a type


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


class PieceTexts(Sequence[str]):
    """Texts of the pieces in a serialized model, each decoded when it is asked for.

    Args:
        data: the serialized model; the texts are valid UTF-8.
        starts: offset of each text, shape [pieces].
        stops: offset of the end of each text, shape [pieces].
    """

    def __init__(
        self, data: bytes, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> None:
        self._data, self._starts, self._stops = data, starts, stops

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, i: int) -> str: ...

    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return self._all[i]
        return self._data[self._starts[i] : self._stops[i]].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __eq__(self, other: object) -> bool:
        return self._all == (other._all if isinstance(other, PieceTexts) else other)

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and self._find(text) is not None

    def index(self, text: str, *_: int) -> int:
        """The id of the first piece with this text.

        Raises:
            ValueError: when there is none.
        """
        i = self._find(text)
        if i is None:
            raise ValueError(f"{text!r} is not a piece")
        return i

    def _find(self, text: str) -> int | None:
        encoded = text.encode(errors="surrogatepass")
        if len(encoded) > 127:
            return None
        encoded = bytes((_TEXT, len(encoded))) + encoded + bytes((_SCORE,))
        at = -1
        while (at := self._data.find(encoded, at + 1)) >= 0:
            i = int(np.searchsorted(self._starts, at + 2))
            if i < len(self) and self._starts[i] == at + 2:
                return i
        return None

    @functools.cached_property
    def _all(self) -> list[str]:
        spans = zip(self._starts.tolist(), self._stops.tolist(), strict=True)
        return [self._data[start:stop].decode() for start, stop in spans]


class PieceModel:
    """A serialized ModelProto, and its content.

    Attributes:
        data: the serialized model.
        pieces: text of each piece, with U+2581 for a space.
        scores: score of each piece, float32, shape [pieces].
        kinds: type of each piece, one byte each.
        specs: the ModelProto without its pieces: trainer_spec and normalizer_spec.
    """

    def __init__(
        self,
        data: bytes,
        pieces: Sequence[str],
        scores: npt.NDArray[np.float32],
        kinds: bytes,
        specs: Any,
        kind_offsets: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.data, self.pieces, self.scores, self.kinds = data, pieces, scores, kinds
        self.specs = specs
        self._kind_offsets = kind_offsets

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its data: the generated classes of protobuf cannot be pickled."""
        return type(self).parse, (self.data,)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Reads a serialized ModelProto.

        Raises:
            ValueError: when it is none, or a piece is not UTF-8.
        """
        try:
            return cls._parse_plain(data) or cls._parse_any(data)
        except (DecodeError, RuntimeError) as e:
            raise ValueError(str(e)) from None

    @classmethod
    def _parse_plain(cls, data: bytes) -> Self | None:
        """Reads short pieces with text, score and type in this order; None: there are others."""
        content = np.frombuffer(data, np.uint8)
        heads = np.flatnonzero((content[:-2] == _MESSAGE) & (content[2:] == _TEXT))
        heads = heads[heads < len(data) - _HEAD]
        sizes, texts = content[heads + 1].astype(np.int64), heads + _HEAD
        stops = texts + content[heads + 3]
        tails = heads + 2 + sizes - stops
        # What looks like a head within a text is not a piece: each one begins where the last ended.
        plausible = (sizes < 128) & ((tails == _TAIL) | (tails == _TAIL - 2))
        plausible &= content[np.minimum(stops, len(data) - 1)] == _SCORE
        heads, sizes, texts, stops, tails = (
            values[plausible] for values in (heads, sizes, texts, stops, tails)
        )
        breaks = np.flatnonzero(np.diff(heads) != sizes[:-1] + 2)
        count = int(breaks[0]) + 1 if len(breaks) else len(heads)
        if not count or heads[0] != 0 or heads[count - 1] + sizes[count - 1] + 2 > len(data):
            return None
        texts, stops, typed = texts[:count], stops[:count], tails[:count] == _TAIL
        end = int(heads[count - 1] + sizes[count - 1]) + 2
        if (content[stops[typed] + 5] != _KIND).any():
            return None
        kinds = np.full(count, NORMAL, np.uint8)
        kinds[typed] = content[stops[typed] + 6]
        if kinds.min() < NORMAL or kinds.max() > BYTE:  # protobuf drops such a value
            return None
        specs = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
            data[end:]
        )
        if specs.pieces:
            return None
        scores = np.stack([content[stops + byte] for byte in range(1, 5)], axis=1)
        ascii_between = content[:end].copy()
        for byte in range(1, 5):  # then all but the texts is ASCII, and each must be valid alone
            ascii_between[stops + byte] = 0
        ascii_between.tobytes().decode()
        pieces = PieceTexts(data, texts, stops)
        offsets = np.where(typed, stops + 6, -1)
        return cls(data, pieces, scores.view("<f4")[:, 0], kinds.tobytes(), specs, offsets)

    @classmethod
    def _parse_any(cls, data: bytes) -> Self:
        proto = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
            data
        )
        entries = [(p.piece, p.score, p.type) for p in proto.pieces]
        if any(isinstance(piece, bytes) for piece, _, _ in entries):
            raise ValueError("a piece is not UTF-8")  # protobuf returns such a string as bytes
        scores = np.array([score for _, score, _ in entries], np.float32)
        del proto.pieces[:]
        return cls(data, [e[0] for e in entries], scores, bytes(e[2] for e in entries), proto)

    @classmethod
    def build(
        cls, pieces: Sequence[str], scores: Sequence[float] | npt.NDArray[Any], kinds: bytes
    ) -> Self:
        """A model with these pieces and Gemma's treatment of text.

        That means BPE with byte fallback and identity normalization: see spm_train.py.

        Raises:
            ValueError: when a piece holds a lone surrogate.
        """
        with np.errstate(over="ignore"):  # infinite then, which the tokenizer refuses
            numbers = np.asarray(scores, np.float32)
        specs = _specs(len(pieces))
        text = np.frombuffer("".join(pieces).encode(), np.uint8)
        # Offsets in characters become offsets in bytes: the first byte of each is none of 10xxxxxx.
        first_bytes = np.append(np.flatnonzero((text & 0xC0) != 0x80), len(text))
        characters = np.fromiter(map(len, pieces), np.int64, len(pieces))
        lengths = np.diff(first_bytes[characters.cumsum()], prepend=0)
        if lengths.max(initial=0) > 127 - _TAIL - 2:
            for piece, score, kind in zip(pieces, numbers.tolist(), kinds, strict=True):
                specs.pieces.add(piece=piece, score=score, type=kind)
            return cls.parse(specs.SerializeToString(deterministic=True))
        ends = (lengths + _HEAD + _TAIL).cumsum()
        stops = ends - _TAIL
        starts = stops - lengths
        encoded = numbers.astype("<f4")[:, None].view(np.uint8)
        columns: list[tuple[npt.NDArray[np.int64], int | npt.NDArray[Any]]] = [
            (starts - 4, _MESSAGE), (starts - 3, lengths + 2 + _TAIL),
            (starts - 2, _TEXT), (starts - 1, lengths),
            (stops, _SCORE), *((stops + 1 + byte, encoded[:, byte]) for byte in range(4)),
            (stops + 5, _KIND), (stops + 6, np.frombuffer(kinds, np.uint8)),
        ]  # fmt: skip
        content = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        is_text = np.ones(len(content), bool)
        for where, value in columns:
            content[where], is_text[where] = value, False
        content[is_text] = text
        data = content.tobytes() + specs.SerializeToString(deterministic=True)
        return cls(data, list(pieces), numbers, kinds, specs, ends - 1)

    def with_kinds(self, changes: Mapping[int, int]) -> bytes:
        """The serialized model with the types of some pieces changed: {id: type}."""
        if not changes:
            return self.data
        if self._kind_offsets is not None:
            offsets = {i: int(self._kind_offsets[i]) for i in changes}
            if min(offsets.values()) >= 0:
                data = bytearray(self.data)
                for i, kind in changes.items():
                    data[offsets[i]] = kind
                return bytes(data)
        proto = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
            self.data
        )
        for i, kind in changes.items():
            proto.pieces[i].type = kind
        changed: bytes = proto.SerializeToString()
        return changed


def build_model(pieces: Iterable[Piece]) -> PieceModel:
    """The model of these pieces, with Gemma's treatment of text.

    Raises:
        ValueError: when a piece is impossible.
        TypeError: when a text, score or type is none.
    """
    pieces = list(pieces)
    stray = next((p for p in pieces if p.kind not in range(NORMAL, BYTE + 1)), None)
    if stray is not None:
        raise ValueError(f"{stray.text!r} has type {stray.kind}, and types are 1 to 6")
    return PieceModel.build(
        [p.text for p in pieces], [p.score for p in pieces], bytes(p.kind for p in pieces)
    )


def _specs(size: int) -> Any:
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = BPE, size
    trainer.byte_fallback = trainer.split_digits = trainer.allow_whitespace_only_pieces = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = range(4)
    trainer.pad_piece, trainer.eos_piece = "<pad>", "<eos>"
    trainer.bos_piece, trainer.unk_piece = "<bos>", "<unk>"
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return proto
