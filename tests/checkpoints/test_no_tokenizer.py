"""A model without a tokenizer: ids work, text is refused where it is used."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gemmule
from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.describe import describe
from gemmule.checkpoints.load import load_model, open_checkpoint
from gemmule.errors import MissingTokenizerError, TokenizerError
from gemmule.infer.core.sampling import SamplingParams
from gemmule.infer.prefix_scoring import ContinuationGroup
from models import random_model

IDS = [2, 300, 301, 302]
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=4)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def bare(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(saved / name, folder)
    return folder


def test_ids_work(bare: Path, saved: Path) -> None:
    lm, usual = gemmule.load(bare), gemmule.load(saved)
    assert not lm.has_tokenizer
    assert lm.complete([IDS], GREEDY)[0].ids == usual.complete([IDS], GREEDY)[0].ids
    groups = [ContinuationGroup(IDS, [[310, 311], [312]])]
    assert next(lm.score_continuations(groups)) == next(usual.score_continuations(groups))
    tokens = torch.tensor([IDS])
    assert torch.equal(lm.model(tokens), usual.model(tokens))


@pytest.mark.parametrize(
    "use",
    [
        lambda lm: lm.generate("text"),
        lambda lm: list(lm.stream("text")),
        lambda lm: lm.chat([{"role": "user", "content": "text"}]),
        lambda lm: lm.score("text"),
        lambda lm: lm.tokenizer,
    ],
)
def test_text_is_refused_where_it_is_used(
    bare: Path, use: Callable[[gemmule.LanguageModel], object]
) -> None:
    lm = gemmule.load(bare)
    message = rf"no tokenizer in {bare}: put the model's tokenizer\.json or tokenizer\.model there"
    with pytest.raises(MissingTokenizerError, match=message):
        use(lm)
    with pytest.raises(MissingTokenizerError, match=message):
        load_model(bare)  # what trains or evaluates needs one at once


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_a_broken_tokenizer_is_no_missing_one(bare: Path, name: str) -> None:
    (bare / name).write_bytes(LFS)
    with pytest.raises(TokenizerError, match=rf"{name} is a Git LFS pointer") as e:
        gemmule.load(bare)
    assert not isinstance(e.value, MissingTokenizerError)


def test_info(bare: Path) -> None:
    assert "no tokenizer in" in describe(bare)["tokenizer"]["problem"]


@pytest.mark.parametrize("to", ["hf", "gemma_pytorch"])
def test_it_is_converted_without_one(bare: Path, tmp_path: Path, to: str) -> None:
    report = convert(bare, tmp_path / "out", to)
    assert "there is no tokenizer: the export has none either" in " ".join(report["notes"])
    assert report["verified"]["weights"]["equal"]
    assert not list((tmp_path / "out").glob("tokenizer*"))
    lm = gemmule.load(tmp_path / "out")
    assert weights_fingerprint(lm.model) == weights_fingerprint(random_model())


def test_gguf_needs_one(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingTokenizerError, match="a GGUF file must hold one: put the model's"):
        convert(bare, tmp_path / "out", "gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_gguf_file_without_one(saved: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from gemmule.checkpoints.gguf.names import is_norm, to_gguf

    config, path = json.loads((saved / "config.json").read_text()), tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "gemma2")
    for key, value in {
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "feed_forward_length": config["intermediate_size"],
        "context_length": config["max_position_embeddings"],
    }.items():
        writer.add_uint32(f"gemma2.{key}", value)
    writer.add_float32("gemma2.attention.layer_norm_rms_epsilon", 1e-6)
    for name, weight in load_file(saved / "model.safetensors").items():
        ours = name.removeprefix("model.")
        writer.add_tensor(to_gguf(ours), (weight + is_norm(ours)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    lm = gemmule.load(path)
    assert len(lm.complete([IDS], GREEDY)[0].ids) == 4
    with pytest.raises(MissingTokenizerError):
        lm.generate("text")


def test_a_quantized_model_without_one(bare: Path, tmp_path: Path) -> None:
    from gemmule.quantize import quantize

    quantize(bare, "int8", tmp_path / "q")
    lm = gemmule.load(tmp_path / "q")
    assert len(lm.complete([IDS], GREEDY)[0].ids) == 4
    with pytest.raises(MissingTokenizerError, match="no tokenizer in"):
        lm.generate("text")
    with open_checkpoint(tmp_path / "q") as checkpoint:
        assert isinstance(checkpoint.tokenizer_if_any, MissingTokenizerError)
    packed = gemmule.load(bare, quantize="int8")
    assert packed.complete([IDS], GREEDY)[0].ids == lm.complete([IDS], GREEDY)[0].ids
    with pytest.raises(MissingTokenizerError):
        quantize(bare, "int4", tmp_path / "r", calibrate=__file__)


def test_the_doctor_leaves_text_out(bare: Path) -> None:
    from gemmule.doctor.examine import run_doctor

    report = run_doctor(str(bare))
    assert report.ok
    left_out = {row.check for row in report.rows if row.meaning == "the model has no tokenizer"}
    assert left_out == {"one <bos>", "tokenizer ids", "markers in user text"}
