"""tokenizer.json: the same ids as the tokenizers library, and clear errors for everything else."""

import copy
import json
import os
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import tokenizers
from hypothesis import assume, given, settings

from gemmule.errors import TokenizerError
from gemmule.model.spm_model import CONTROL, UNUSED, USER_DEFINED
from gemmule.model.tokenizer import Tokenizer, train_tokenizer

PROSE = "The sea, said the captain, is never the same sea twice.\nHello  there, haha, \n\n"
TOKEN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
CHATML = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([PROSE * 20], 540)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return folder


def content_of(folder):
    return json.loads((folder / "tokenizer.json").read_text())


@pytest.fixture
def content(saved):
    return content_of(saved)


def write(folder, content):
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


def added(i, text, **flags):
    return {"id": i, "content": text, **TOKEN, "special": False, **flags}


def library_ids(file, text):
    return tokenizers.Tokenizer.from_file(str(file)).encode(text, add_special_tokens=False).ids


# Forms of the file


def test_a_saved_file_alone_gives_the_same_tokenizer(tokenizer, content, tmp_path):
    loaded = Tokenizer.load(write(tmp_path, content))
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.added_tokens == ()
    assert loaded.encode(PROSE) == tokenizer.encode(PROSE)
    loaded.save(tmp_path / "again")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        ours = (tmp_path / "again" / name).read_bytes()
        assert name == "tokenizer.model" or ours == (tmp_path / "again" / name).read_bytes()
    assert Tokenizer.load(tmp_path / "again/tokenizer.model").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "form",
    [
        json.dumps,
        lambda c: json.dumps(c, indent=2, ensure_ascii=False),
        lambda c: json.dumps(c, separators=(",", ":")),
        lambda c: "\ufeff" + json.dumps(c),
        lambda c: json.dumps(c).encode("utf-16"),
        lambda c: json.dumps({**c, "model": {**c["model"], "merges": as_text(c)}}),
        lambda c: json.dumps(dict(reversed(c.items()))),
    ],
)
def test_every_form_of_the_file_is_read(tokenizer, content, tmp_path, form):
    text = form(content)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


def as_text(content):
    return [" ".join(pair) for pair in content["model"]["merges"]]


def test_tokenizer_json_comes_before_tokenizer_model(saved, content, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((saved / "tokenizer.model").read_bytes())
    content["added_tokens"].append(added(540, "<|im_start|>", special=True))
    write(tmp_path, content)
    assert Tokenizer.load(tmp_path).vocab_size == 541
    assert Tokenizer.load(tmp_path / "tokenizer.model").vocab_size == 540


def test_transformers_5_saves_what_is_read(tokenizer, saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(saved)
    theirs.add_special_tokens({"additional_special_tokens": [*CHATML]})
    theirs.add_tokens(["<tool>", "two words"])
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.model").exists()
    ours = Tokenizer.load(tmp_path)
    assert [token.id for token in ours.added_tokens] == [540, 541, 542, 543]
    text = "<|im_start|>user\nsome two words, <tool>two  words<|im_end|>\n"
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text, control=True) == ids
    assert {540, 541} <= set(ids)
    assert {540, 541}.isdisjoint(ours.encode(text))
    assert {542, 543} <= set(ours.encode(text))
    assert ours.decode(ours.encode(text)) == ours.decode(ids, control=True) == text
    # And back: our files in transformers, and our tokenizer.model alone.
    ours.save(tmp_path / "ours")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again(text, add_special_tokens=False)["input_ids"] == ids
    assert again.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    loaded = Tokenizer.load(tmp_path / "ours")
    assert (loaded.fingerprint, loaded.added_tokens) == (ours.fingerprint, ours.added_tokens)
    assert loaded.encode(text, control=True) == ids
    kinds = [piece.kind for piece in Tokenizer.load(tmp_path / "ours/tokenizer.model").pieces]
    assert kinds[540:] == [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED]


# Merges


@st.composite
def vocabularies(draw):
    """Pieces and merges of any shape: one pair or many, in any order, some never reached."""
    letters = "abc\u2581é"
    pieces, merges = list(letters), []
    for _ in range(draw(st.integers(0, 14))):
        pair = (draw(st.sampled_from(pieces)), draw(st.sampled_from(pieces)))
        merges.append(pair)
        if "".join(pair) not in pieces and len("".join(pair)) < 7:
            pieces.append("".join(pair))
    pieces += draw(st.lists(st.sampled_from(["abca", "xa", "ax", "xx", "bé\u2581"]), unique=True))
    pieces = list(dict.fromkeys(pieces))
    merges = [pair for pair in merges if "".join(pair) in pieces]
    if draw(st.booleans()):  # as converters from SentencePiece do
        merges = [
            (piece[:cut], piece[cut:])
            for piece in pieces
            for cut in range(1, len(piece))
            if piece[:cut] in pieces and piece[cut:] in pieces
        ]
    return pieces, draw(st.permutations(merges)) if draw(st.booleans()) else merges


@settings(max_examples=400, deadline=None)
@given(vocabularies(), st.lists(st.text("abc éx", max_size=14), min_size=8, max_size=8))
def test_merges_of_any_shape_give_the_librarys_ids(tmp_path_factory, saved, learned, texts):
    (pieces, merges), content = learned, content_of(saved)
    fixed = [piece for piece, i in content["model"]["vocab"].items() if i < 473]
    content["model"]["vocab"] = {piece: i for i, piece in enumerate(dict.fromkeys(fixed + pieces))}
    content["model"]["merges"] = merges
    folder = tmp_path_factory.mktemp("merges")
    theirs = tokenizers.Tokenizer.from_file(str(write(folder, content)))
    ours = Tokenizer.load(folder)
    ours.save(folder / "again")
    alone = Tokenizer.load(folder / "again/tokenizer.model")
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert alone.encode(text) == ids
        assert ours.decode(ids) == text


def test_a_tab_may_stand_for_its_byte(content, tmp_path):
    """As in Gemma's own file, where runs of tabs are pieces."""
    vocab = {"\t" if p == "<0x09>" else p: i for p, i in content["model"]["vocab"].items()}
    vocab["\t\t"] = len(vocab)
    content["model"]["vocab"] = vocab
    content["model"]["merges"] = [["\t", "\t"], *content["model"]["merges"]]
    ours = Tokenizer.load(write(tmp_path, content))
    text = "a\tb\t\tc\t\t\t"
    ids = library_ids(tmp_path / "tokenizer.json", text)
    assert {226, 540} <= set(ids)
    assert ours.encode(text) == ids
    assert ours.decode(ids) == text
    ours.save(tmp_path / "ours")
    assert library_ids(tmp_path / "ours/tokenizer.json", text) == ids


def test_runs_of_spaces_that_only_merges_build(content, tmp_path):
    """Gemma's file lists them as tokens that are not normalized, which never match a space."""
    runs = ["\u2581" * n for n in range(2, 32)]
    for token in content["added_tokens"]:
        token["normalized"] = False
    pairs = [[run[:1], run[1:]] for run in runs] + [[run[:-1], run[-1:]] for run in runs]
    halves = [["\u2581" * 16, "\u2581" * n] for n in range(2, 16)]
    content["model"]["merges"] = pairs + halves + content["model"]["merges"]
    ours = Tokenizer.load(write(tmp_path, content))
    for text in (" " * n + "a" for n in range(70)):
        assert ours.encode(text) == library_ids(tmp_path / "tokenizer.json", text)
    ours.save(tmp_path / "ours")
    assert Tokenizer.load(tmp_path / "ours").fingerprint == ours.fingerprint


# Added tokens

FLAGS = st.fixed_dictionaries({name: st.booleans() for name in TOKEN})
CONTENTS = ["<x>", "ab", "a", " b", "b ", "<td>", "\n<", "é", "a a", "<<", ">>", "_a"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(CONTENTS), FLAGS, st.booleans()),
        max_size=4,
        unique_by=lambda t: t[0],
    ),
    st.lists(
        st.lists(
            st.sampled_from(
                [*CONTENTS, "<", ">", " ", "\n", "\u200d", "²", "_", "\x1f", "\u3000", "T"]
            ),
            max_size=12,
        ).map("".join),
        min_size=6,
        max_size=6,
    ),
)
def test_added_tokens_are_found_as_by_the_library(tmp_path_factory, saved, tokens, texts):
    content = content_of(saved)
    vocab = content["model"]["vocab"]
    end = len(vocab)
    for text, flags, special in tokens:
        assume(not special or text not in vocab or vocab[text] < 473)
        content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != text]
        i = vocab.get(text.replace(" ", "\u2581") if text in vocab else text, end)
        end += i == end
        content["added_tokens"].append(added(i, text, **flags, special=special))
    folder = tmp_path_factory.mktemp("added")
    theirs = tokenizers.Tokenizer.from_file(str(write(folder, content)))
    ours = Tokenizer.load(folder)
    ours.save(folder / "again")
    again = Tokenizer.load(folder / "again")
    assert again.fingerprint == ours.fingerprint
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, control=True) == ids
        assert again.encode(text, control=True) == ids


def test_added_tokens_count_in_the_fingerprint(tokenizer, content, tmp_path):
    prints = {tokenizer.fingerprint}
    for n, flags in enumerate([{}, {"special": True}, {"lstrip": True}, {"normalized": True}]):
        changed = copy.deepcopy(content)
        changed["added_tokens"].append(added(540, "<|im_start|>", **flags))
        (tmp_path / str(n)).mkdir()
        prints.add(Tokenizer.load(write(tmp_path / str(n), changed)).fingerprint)
    assert len(prints) == 5


@pytest.mark.parametrize("special", [True, False])
def test_renamed_symbols_are_honored(tokenizer, content, tmp_path, special):
    names = {"<unused0>": "<tool>", "<start_of_turn>": "<|a|>", "<end_of_turn>": "<|b|>"}
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
    for token in content["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "special": special}
    ours = Tokenizer.load(write(tmp_path, content))
    assert [token.id for token in ours.added_tokens] == [7, 106, 107]
    text = "<tool> <|a|><|b|>"
    assert ours.encode(text, control=True) == library_ids(tmp_path / "tokenizer.json", text)
    assert set(ours.encode(text)).isdisjoint({7, 106, 107}) == special
    assert ours.decode(ours.encode(text)) == text
    assert not ours.has_gemma_turns
    assert ours.stop_ids == (1, 107)
    with pytest.raises(TokenizerError, match="no chat template"):
        ours.render_chat([{"role": "user", "content": "Hi"}])
    ours.save(tmp_path / "ours")
    assert Tokenizer.load(tmp_path / "ours").fingerprint == ours.fingerprint


def test_a_literal_u2581_stays_one(content, tmp_path):
    content["added_tokens"].append(added(540, "\u2581<x>", normalized=True))
    ours = Tokenizer.load(write(tmp_path, content))
    for text in ("\u2581<x>", " <x>", "\u2581 \u2581\u2581"):
        assert ours.decode(ours.encode(text)) == text
    assert 540 in ours.encode("a <x>")
    assert 540 not in ours.encode("a\u2581<x>")


# A tokenizer.model with files around it


def model_only(saved, folder):
    (folder / "tokenizer.model").write_bytes((saved / "tokenizer.model").read_bytes())


def test_added_tokens_around_a_tokenizer_model(saved, tmp_path):
    model_only(saved, tmp_path)
    decoder = {"540": {"content": "<|im_start|>", **TOKEN, "special": True}}
    decoder["541"] = {"content": "<tool>", **TOKEN, "special": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    ours = Tokenizer.load(tmp_path)
    assert ours.encode("<tool><|im_start|>", control=True) == [541, 540]
    assert ours.encode("<tool>") == [541]


def test_files_of_earlier_versions(saved, tmp_path):
    model_only(saved, tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_end|>": 541, "<tool>": 540}))
    special = {"eos_token": {"content": "<|im_end|>", **TOKEN}, "bos_token": "<bos>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    ours = Tokenizer.load(tmp_path)
    assert [(t.content, t.special, t.normalized) for t in ours.added_tokens] == [
        ("<tool>", False, True),
        ("<|im_end|>", True, False),
    ]


def test_special_tokens_that_only_the_config_names(content, tmp_path):
    config = {"eos_token": "<|end|>", "extra_special_tokens": ["<h1>", "<|end|>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    write(tmp_path, content)
    ours = Tokenizer.load(tmp_path)
    assert {token.id: token.special for token in ours.added_tokens} == {185: True, 540: True}
    assert ours.named_token("eos_token") == "<|end|>"


@pytest.mark.parametrize("key", ["extra_special_tokens", "model_specific_special_tokens"])
def test_special_tokens_by_name(tokenizer, content, tmp_path, key):
    """transformers 4.50 writes an object, empty unless the tokens of a model have names."""
    write(tmp_path, content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: {}}))
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: {"image_token": "<image>"}}))
    ours = Tokenizer.load(tmp_path)
    assert [(t.content, t.id, t.special) for t in ours.added_tokens] == [("<image>", 540, True)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("added_tokens.json", {"<x>": 542}, "may not leave a gap"),
        ("added_tokens.json", {"<x>": "540"}, "has the id '540'"),
        ("added_tokens.json", {"<x>": 7}, "id 7 is '<unused0>'"),
        ("added_tokens.json", {"<x>": 10**9}, "may not leave a gap"),
        ("added_tokens.json", {"": 540}, "has no text"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "not an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"540": "x"}}, "expected an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "the id 'x'"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"540": {"content": "y", "lstrip": 1}}},
            "lstrip 1",
        ),
        ("tokenizer_config.json", {"eos_token": 7}, "eos_token holds 7"),
        ("special_tokens_map.json", [1], "holds a list"),
    ],
)
def test_wrong_files_around_a_model_are_clear_errors(saved, tmp_path, name, value, message):
    model_only(saved, tmp_path)
    (tmp_path / name).write_text(json.dumps(value))
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


# Broken and foreign files


def _set(*path):
    *parents, key, value = path

    def change(content):
        for parent in parents:
            content = content[parent]
        content[key] = value

    return change


def _rename(old, new):
    def change(content):
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {new if p == old else p: i for p, i in vocab.items()}
        for token in content["added_tokens"]:
            token["content"] = new if token["content"] == old else token["content"]

    return change


def _gemma3(content):
    _rename("<start_of_turn>", "<unused99>")(content)
    _rename("<unused98>", "<start_of_turn>")(content)


def _special_letter(content):
    vocab = content["model"]["vocab"]
    content["added_tokens"].append(added(vocab["e"], "e", special=True))


BAD = [
    (_set("model", "vocab", "e", 10**9), "no token has"),
    (_set("model", "vocab", "e", 7), "two tokens have id 7"),
    (_set("model", "vocab", "e", -1), "has -1"),
    (_set("model", "vocab", "e", "7"), "has the id '7'"),
    (_set("model", "vocab", "e", True), "has the id True"),
    (_set("model", "vocab", "e", 1.0), "has the id 1.0"),
    (_set("model", "vocab", None), "no vocabulary"),
    (_set("model", "vocab", {}), "it has 0 pieces"),
    (_set("model", "vocab", "", 540), "empty piece"),
    (_set("model", None), "has no model"),
    (_set("model", "merges", None), "has no merges"),
    (_set("model", "merges", [["e", "zzz"]]), "needs 'zzz'"),
    (_set("model", "merges", [["e", "e", "e"]]), "is not a pair"),
    (_set("model", "merges", ["ee"]), "is not a pair"),
    (_set("model", "merges", [["e", 1]]), "something other than text"),
    (_set("model", "merges", [["e", "h"], "e h"]), "not all of one form"),
    (_set("model", "merges", [["<0xE2>", "<0x96>"]]), "needs '<0xE2><0x96>'"),
    (_set("model", "type", "Unigram"), "its model is 'Unigram'"),
    (_set("model", "type", "WordPiece"), "its model is 'WordPiece'"),
    (_set("model", "byte_fallback", False), "no byte fallback"),
    (_set("model", "dropout", 0.1), "dropout 0.1"),
    (_set("model", "ignore_merges", True), "ignore_merges True"),
    (_set("model", "end_of_word_suffix", "</w>"), "end_of_word_suffix '</w>'"),
    (_set("normalizer", None), "its normalizer is missing"),
    (
        _set("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}),
        "Sequence of NFKC",
    ),
    (_set("pre_tokenizer", {"type": "ByteLevel"}), "its pre_tokenizer is ByteLevel"),
    (_set("pre_tokenizer", {"type": "Metaspace"}), "its pre_tokenizer is Metaspace"),
    (_set("decoder", None), "its decoder is missing"),
    (_set("decoder", {"type": "ByteLevel"}), "its decoder is ByteLevel"),
    (_set("post_processor", {"type": "BertProcessing"}), "its post_processor is BertProcessing"),
    (_set("added_tokens", {}), None),
    (_set("added_tokens", [1]), "not a list of objects"),
    (_set("added_tokens", [added(600, "<x>")]), "may not leave a gap"),
    (_set("added_tokens", [added(540, "<x>"), added(540, "<y>")]), "have the id 540"),
    (_set("added_tokens", [added(540, "<x>"), added(541, "<x>")]), "have the content '<x>'"),
    (_set("added_tokens", [added(10**30, "<x>")]), "may not leave a gap"),
    (_set("added_tokens", [added(300, "<0x53>")]), "is also an added token"),
    (_set("added_tokens", [added(540, "<x>", lstrip=None)]), "lstrip None"),
    (_special_letter, "also an ordinary piece"),
    (_rename("<bos>", "<s2>"), "id 2 is '<s2>'"),
    (_rename("<0x41>", "<0xZZ>"), "where '<0x41>' belongs"),
    (_gemma3, "Gemma 3"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_broken_and_foreign_files_are_clear_errors(content, tmp_path, change, message):
    change(content)
    file = write(tmp_path, content)
    if message is None:
        Tokenizer.load(file)
        return
    with pytest.raises(TokenizerError, match=re.escape(message)) as e:
        Tokenizer.load(tmp_path)
    assert str(file) in str(e.value)
    assert len(str(e.value)) < 500


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not readable JSON"),
        (b"{", "not readable JSON"),
        (b"[]", "holds a list"),
        (b"[" * 100_000, "not readable JSON"),
        (b'{"model": {"vocab": {"\xff": 1}}}', "not readable JSON"),
        (b'{"model": {"vocab": {"\\ud800": 1}}}', "not readable JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\xff\xfe{\x00\x00", "not UTF-16"),
    ],
)
def test_files_that_are_no_json_are_clear_errors(tmp_path, data, message):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.load(tmp_path)


def test_a_cut_file_is_a_clear_error(saved, tmp_path):
    data = (saved / "tokenizer.json").read_bytes()
    for size in range(0, len(data) - 10, 1999):
        (tmp_path / "tokenizer.json").write_bytes(data[:size])
        with pytest.raises(TokenizerError, match="not readable JSON"):
            Tokenizer.load(tmp_path)


def test_a_folder_without_a_tokenizer_is_a_clear_error(tmp_path):
    with pytest.raises(TokenizerError, match=r"holds tokenizer\.json or tokenizer\.model"):
        Tokenizer.load(tmp_path)


# The real one: GEMMULE_GEMMA_TOKENIZER names a folder with Gemma's tokenizer.json

REAL = os.environ.get("GEMMULE_GEMMA_TOKENIZER")


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="GEMMULE_GEMMA_TOKENIZER names no tokenizer")
def test_gemmas_own_tokenizer(tmp_path):
    file = Path(REAL or "") / "tokenizer.json"
    theirs = tokenizers.Tokenizer.from_file(str(file))
    ours = Tokenizer.load(file)
    content = json.loads(file.read_text())
    checked = copy.deepcopy(content)
    checked["model"]["vocab"]["<more>"] = 256_000  # no longer the published one: all is checked
    slowly = Tokenizer.load(write(tmp_path, checked))
    pairs = zip(slowly.pieces, ours.pieces, strict=False)  # UNUSED ones have the lowest score
    assert all(a == b or (a.kind == b.kind == UNUSED and a.text == b.text) for a, b in pairs)
    texts = [
        path.read_text().replace("\u2581", "_")
        for path in sorted(Path(tokenizers.__file__).parent.rglob("*.py*"))
        if path.suffix in (".py", ".pyi")
    ]
    texts += [" " * n + "x\t" * n + "\n" * n for n in range(80)]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, control=True) == slowly.encode(text, control=True) == ids
        assert ours.decode(ids, control=True) == text
