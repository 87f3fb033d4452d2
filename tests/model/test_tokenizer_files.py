"""The chat template and the stop ids of a tokenizer, as a folder's files state them."""

import json
import os

import pytest

from gemmule.errors import TokenizerError
from gemmule.model.hf_tokenizer import CHAT_TEMPLATE
from gemmule.model.spm_model import NORMAL, Piece
from gemmule.model.tokenizer import Tokenizer, train_tokenizer

PROSE = "The sea, said the captain, is never the same sea twice.\n\n"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([PROSE * 20], 520)


@pytest.fixture
def folder(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    return tmp_path


def write(folder, name, value):
    (folder / name).write_text(json.dumps(value))


def test_without_other_files_the_format_is_gemmas(tokenizer, folder):
    assert tokenizer.chat_format == Tokenizer.load(folder).chat_format == (None, (1, 107))
    assert tokenizer.added_tokens == ()


@pytest.mark.parametrize(
    ("generation", "config", "stop_ids"),
    [
        (None, 1, (1, 107)),
        (None, 500, (1, 107, 500)),
        ([1, 107], 500, (1, 107)),
        ([107, 1], None, (1, 107)),
        (None, None, (1, 107)),
    ],
)
def test_stop_ids_come_from_the_generation_config_first(folder, generation, config, stop_ids):
    write(folder, "generation_config.json", {"eos_token_id": generation})
    write(folder, "config.json", {"eos_token_id": config})
    assert Tokenizer.load(folder).stop_ids == stop_ids


def test_an_own_template_has_only_the_declared_stop_ids(folder):
    write(folder, "generation_config.json", {"eos_token_id": [511, 1, 511]})
    (folder / "chat_template.jinja").write_text(CHATML)
    assert Tokenizer.load(folder).chat_format == (CHATML, (511, 1))


@pytest.mark.parametrize("bad", [520, -1, "1", True, 1.0, [], [1, 520], [None], {"a": 1}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_bad_stop_ids_are_errors_that_name_the_file(folder, name, bad):
    write(folder, name, {"eos_token_id": bad})
    with pytest.raises(TokenizerError, match=rf"{name}: eos_token_id (holds|is empty)"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        {"default": CHATML, "tool_use": "x"},
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}],
    ],
)
def test_templates_are_read_from_the_tokenizer_config(folder, template):
    write(folder, "tokenizer_config.json", {"chat_template": template})
    assert Tokenizer.load(folder).chat_template == CHATML
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert Tokenizer.load(folder).chat_template is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (7, "chat_template is a int"),
        ([{"name": "default"}], "lacks its name or template"),
        (["x"], "lacks its name or template"),
        ({"tool_use": "x"}, "none is named 'default'"),
    ],
)
def test_bad_templates_are_errors_that_name_the_file(folder, template, message):
    write(folder, "tokenizer_config.json", {"chat_template": template})
    with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json.*{message}"):
        Tokenizer.load(folder)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe\xff", b"[" * 100_000, b""])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_damaged_files_are_clear_errors(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=rf"{name} (is not readable JSON|holds a list)"):
        Tokenizer.load(folder)


def test_a_lone_surrogate_is_a_clear_error(folder):
    (folder / "tokenizer_config.json").write_text('{"chat_template": "\\ud800"}')
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json holds a lone surrogate"):
        Tokenizer.load(folder)


def test_a_template_with_an_endless_number_is_not_gemmas(folder):
    template = "{{ " + "9" * 5000 + " }}"
    (folder / "chat_template.jinja").write_text(template)
    assert Tokenizer.load(folder).chat_template == template


def test_names_and_further_templates_are_kept_by_save(tokenizer, folder, tmp_path):
    templates = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "x"}]
    config = {"chat_template": templates, "eos_token": "<end_of_turn>", "pad_token": "<unused3>"}
    write(folder, "tokenizer_config.json", config)
    loaded = Tokenizer.load(folder)
    assert (loaded.named_token("eos_token"), loaded.named_id("pad_token")) == ("<end_of_turn>", 10)
    loaded.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.named_templates == loaded.named_templates == {"tool_use": "x"}
    assert again.token_names == loaded.token_names
    assert again.fingerprint == tokenizer.fingerprint


def test_the_format_is_kept_by_save(tokenizer, tmp_path):
    own = tokenizer.with_chat_format(CHATML, [511])
    assert tokenizer.chat_format == (None, (1, 107))
    own.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.chat_format == own.chat_format == (CHATML, (511,))
    assert again.fingerprint == own.fingerprint == tokenizer.fingerprint
    with pytest.raises(TokenizerError, match="stop_ids holds 520"):
        tokenizer.with_chat_format(None, [520])


def test_a_file_alone_has_gemmas_format(folder):
    (folder / "chat_template.jinja").write_text(CHATML)
    assert Tokenizer.load(folder / "tokenizer.model").chat_template is None


def test_a_named_token_with_a_space_has_its_id(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write(folder, "tokenizer_config.json", {**config, "pad_token": "<my pad>"})
    loaded = Tokenizer.load(folder)
    assert loaded.named_token("pad_token") == "<my pad>"
    assert loaded.named_id("pad_token") == 520
    assert loaded.named_id("eos_token") == 1


def test_a_piece_that_nothing_builds_keeps_the_fingerprint(tokenizer, tmp_path):
    pieces = [*tokenizer.pieces, Piece("twicesaidsea", -32.0, NORMAL)]
    odd = Tokenizer.from_pieces(pieces, "pieces")
    odd.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == odd.fingerprint


def test_a_piece_that_merges_do_not_build_is_not_taken_from_the_model(tokenizer, tmp_path):
    pieces = [*tokenizer.pieces, Piece("xq", -32.0, NORMAL), Piece("x", -33.0, NORMAL)]
    pieces.append(Piece("q", -34.0, NORMAL))
    Tokenizer.from_pieces(pieces, "pieces").save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert ["x", "q"] in content["model"]["merges"]
    content["model"]["merges"].remove(["x", "q"])
    write(tmp_path, "tokenizer.json", content)
    assert Tokenizer.load(tmp_path).encode("xq") != [tokenizer.vocab_size]
    assert Tokenizer.load(tmp_path / "tokenizer.model").encode("xq") == [tokenizer.vocab_size]


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TokenizerError, match="is a pipe"):
        Tokenizer.load(tmp_path / "pipe")
