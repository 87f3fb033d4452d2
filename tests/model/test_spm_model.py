"""SentencePiece models read without protobuf: the same pieces, scores and types."""

import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemmule.model.spm_model import BYTE, NORMAL, Piece, PieceModel, build_model

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24)
RUNS = st.integers(1, 60).map(lambda n: "\n" * n)
# Within this text is what a piece's first bytes look like.
HEAD = "\n\x0b\n\x02ab\x15\0\0\0\0\x18\x01"


def pieces_of(texts):
    return [Piece(text, -float(i), NORMAL + i % 3 * 2) for i, text in enumerate(texts)]


@given(st.lists(TEXTS | RUNS, min_size=1, max_size=60))
@example(["\n" * n for n in range(1, 60)])
@example(["a", HEAD, "b"])
@example(["a\0b", "\0", "▁"])
@settings(deadline=None)
def test_pieces_come_back(texts):
    built = build_model(pieces_of(texts))
    parsed, through_protobuf = PieceModel.parse(built.data), PieceModel._parse_any(built.data)
    for model in (parsed, through_protobuf, pickle.loads(pickle.dumps(parsed))):
        assert model.pieces == texts
        assert list(model.pieces) == texts
        assert [model.pieces[i] for i in range(len(texts))] == texts
        assert model.pieces[:2] == texts[:2]
        assert model.kinds == built.kinds
        assert model.scores.tolist() == built.scores.tolist()
    for text in texts:
        assert text in parsed.pieces
        assert parsed.pieces.index(text) == texts.index(text)
    for text in {"", "none of them", "\ud800", "x" * 200, "BPE"}.difference(texts):
        assert text not in parsed.pieces
        with pytest.raises(ValueError, match="is not"):
            parsed.pieces.index(text)


def test_ordinary_models_are_read_without_protobuf(monkeypatch):
    data = build_model(pieces_of(["\n" * n for n in range(1, 100)] + ["é", "▁a"])).data
    monkeypatch.delattr(PieceModel, "_parse_any")
    assert PieceModel.parse(data).pieces[-2:] == ["é", "▁a"]


def test_a_piece_must_be_utf_8_by_itself():
    data = build_model(pieces_of(["ab", "cd"])).data
    for broken in (data.replace(b"ab", b"a\xc3"), data.replace(b"cd", b"\xa9d")):
        with pytest.raises(ValueError, match="utf-8"):
            PieceModel.parse(broken)


def test_types_are_changed_in_place():
    model = PieceModel.parse(build_model(pieces_of(["a", "b", "c"])).data)
    changed = PieceModel.parse(model.with_kinds({1: BYTE}))
    assert changed.kinds == bytes((model.kinds[0], BYTE, model.kinds[2]))
    assert changed.pieces == model.pieces
