"""The full tokenizer that a name stands for, and what `tokenizer trim` makes of other families."""

import json
from pathlib import Path

import gguf
import pytest
import transformers
from test_alignment import byte_level

from gemmule import cli
from gemmule.checkpoints.checkpoint import of_model
from gemmule.checkpoints.gguf.writer import layouts
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.tensor_layout import write
from gemmule.errors import CheckpointError, TokenizerError
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.trim_bpe import FORMER_IDS
from gemmule.teachers.whole_tokenizer import any_bpe, gemma_tokenizer
from models import TINY, random_model, tiny_config

TEXT = "the captain said: add 12345\n" * 30


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = byte_level(tmp_path_factory.mktemp("gpt2") / "m")
    end = {"content": "<end>", "special": True, "single_word": False, "lstrip": False,
           "rstrip": False, "normalized": False}  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>",
              "added_tokens_decoder": {"0": end}}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def gguf_of(gpt2: Path, file: Path) -> Path:
    content = json.loads((gpt2 / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    writer = gguf.GGUFWriter(file, "gpt2")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length",
                "attention.head_count"):  # fmt: skip
        writer.add_uint32(f"gpt2.{key}", 8)
    writer.add_float32("gpt2.attention.layer_norm_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "gpt-2")
    writer.add_array("tokenizer.ggml.tokens", [piece.encode() for piece in vocab])
    writer.add_array("tokenizer.ggml.token_type", [3 if p == "<end>" else 1 for p in vocab])
    writer.add_array("tokenizer.ggml.merges", [" ".join(m) for m in content["model"]["merges"]])
    writer.add_uint32("tokenizer.ggml.eos_token_id", vocab["<end>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_gemmas_are_found_in_every_form(pieces: Tokenizer, tmp_path: Path) -> None:
    model = random_model(tiny_config(TINY, vocab_size=512))
    save_model(model, pieces, tmp_path / "run" / "model")
    files, _ = layouts(of_model(model, pieces), "F32", "m.gguf")
    write(files, tmp_path)
    forms = ("run", "run/model", "run/model/tokenizer.json", "run/model/tokenizer.model", "m.gguf")
    for form in forms:
        assert gemma_tokenizer(str(tmp_path / form)).fingerprint == pieces.fingerprint
        assert any_bpe(str(tmp_path / form)) is None
    with pytest.raises(CheckpointError, match="nothing at"):
        gemma_tokenizer(str(tmp_path / "none"))


def test_other_families_are_told_apart(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is not a Gemma tokenizer"):
        gemma_tokenizer(str(gpt2))
    found = any_bpe(str(gpt2))
    assert found is not None
    assert found[1] == gpt2
    of_gguf = any_bpe(str(gguf_of(gpt2, tmp_path / "m.gguf")))
    assert of_gguf is not None
    assert of_gguf[1] is None
    assert of_gguf[0].ids == found[0].ids
    assert of_gguf[0].ranks == found[0].ranks


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_trimmed_on_the_command_line(form: str, gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    name = gpt2 if form == "folder" else gguf_of(gpt2, tmp_path / "m.gguf")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        cli.main(
            [
                "tokenizer",
                "trim",
                str(name),
                "--text",
                str(tmp_path / "text.txt"),
                "--out",
                str(out),
            ]
        )
    assert not stopped.value.code
    full = transformers.AutoTokenizer.from_pretrained(gpt2)
    small = transformers.AutoTokenizer.from_pretrained(out)
    former = json.loads((out / FORMER_IDS).read_text())
    assert len(small) == len(former) < len(full)
    assert [former[i] for i in small(TEXT).input_ids] == full(TEXT).input_ids
    if form == "folder":
        assert small.eos_token_id == former.index(full.eos_token_id)
        assert (out / "chat_template.jinja").is_file()
