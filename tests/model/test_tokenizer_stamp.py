"""Stamped folders: the same tokenizer without reading tokenizer.json, and only while it is that."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmule.model import tokenizer_json, tokenizer_stamp
from gemmule.model.added_tokens import AddedToken
from gemmule.model.spm_model import NORMAL, Piece
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.model.tokenizer_files import read_declared_tokens

PROSE = "The sea, said the captain, is never the same sea twice.\n\n"
PARTS = st.sampled_from(
    ["<bos>", "<start_of_turn>", "<|im_end|>", " ", "▁", "\n\n", "the sea", "\0", "é", "😀"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamped")
    pieces = train_tokenizer([PROSE * 20], 520).pieces
    more = [Piece("<|im_end|>", 0.0, NORMAL), Piece("[mark]", 0.0, NORMAL)]
    added = [AddedToken("<|im_end|>", 520, special=True), AddedToken("[mark]", 521)]
    Tokenizer.from_pieces([*pieces, *more], "test", added_tokens=added).save(folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder):
    return Tokenizer.load(folder)


@pytest.fixture
def stamped(folder, plain, tmp_path):
    plain.save(tmp_path)
    Tokenizer.write_stamp(tmp_path)
    return tmp_path


def known(folder):
    return tokenizer_stamp.read(folder, read_declared_tokens(folder))


def test_tokenizer_json_is_not_read_again(plain, stamped, monkeypatch):
    monkeypatch.delattr(tokenizer_json, "read")
    fast = Tokenizer.load(stamped)
    assert fast.fingerprint == plain.fingerprint
    assert fast.added_tokens == plain.added_tokens
    assert len(plain.added_tokens) == 2
    assert fast.chat_format == plain.chat_format
    assert fast.pieces == plain.pieces
    assert fast.is_control == plain.is_control
    assert fast.token_bytes().tolist() == plain.token_bytes().tolist()

    @given(st.lists(st.text(max_size=12) | PARTS, max_size=12).map("".join), st.booleans())
    @settings(deadline=None)
    def same(text, control):
        text = text.encode(errors="ignore").decode()
        ids = plain.encode(text, control=control)
        assert fast.encode(text, control=control) == ids
        assert fast.decode(ids, control=True) == plain.decode(ids, control=True)

    same()


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", tokenizer_stamp.FILE]
)
def test_changed_files_are_read_in_full(plain, stamped, name):
    assert known(stamped) is not None
    file = stamped / name
    if name == "tokenizer.model":
        other = Tokenizer.from_pieces(plain.pieces[:520], "other")
        other.save(stamped / "other")
        (stamped / "other/tokenizer.model").rename(file)
    elif name == tokenizer_stamp.FILE:
        file.unlink()
    else:
        content = json.loads(file.read_text())
        content["added_tokens" if name == "tokenizer.json" else "additional_special_tokens"] = []
        file.write_text(json.dumps(content))
    assert known(stamped) is None
    (stamped / tokenizer_stamp.FILE).unlink(missing_ok=True)
    without = Tokenizer.load(stamped)
    # tokenizer_config.json still names the special one of the two.
    assert without.vocab_size == (521 if name == "tokenizer.json" else 522)


@pytest.mark.parametrize(
    "stamp", ["", "[]", "{}", '{"of": 1}', '{"of": {"version": 0}, "added_tokens": []}', "\0"]
)
def test_damaged_stamps_are_ignored(plain, stamped, stamp):
    (stamped / tokenizer_stamp.FILE).write_text(stamp)
    assert known(stamped) is None
    assert Tokenizer.load(stamped).fingerprint == plain.fingerprint


def test_added_tokens_of_another_form_are_ignored(stamped):
    file = stamped / tokenizer_stamp.FILE
    stamp = json.loads(file.read_text())
    file.write_text(json.dumps({**stamp, "added_tokens": [{"content": "a"}]}))
    assert known(stamped) is None


def test_models_that_differ_are_not_stamped(plain, tmp_path):
    plain.save(tmp_path)
    Tokenizer.from_pieces(plain.pieces[:520], "other").save(tmp_path / "other")
    (tmp_path / "other/tokenizer.model").rename(tmp_path / "tokenizer.model")
    Tokenizer.write_stamp(tmp_path)
    assert not (tmp_path / tokenizer_stamp.FILE).exists()
