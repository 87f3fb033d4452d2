"""gemmule trim, from a model and a text to a smaller model that says the same."""

import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gemmule
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_model
from gemmule.data.prepare import prepare
from gemmule.errors import ConfigError, DataError, OutputError
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.quantize import quantize
from gemmule.train.config import RunConfig
from gemmule.train.recipes import build_recipe
from gemmule.trim import summary, trim
from models import GROUPED, random_model, tiny_config

TEXT = "def encode(self, text):\n    return self.pieces[text] if text else None\n" * 60


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return train_tokenizer([Path(ast.__file__).read_text()], 1000)


@pytest.fixture(scope="module")
def model(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with more rows than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("trim") / "model"
    shape = tiny_config(GROUPED, vocab_size=1024)
    save_model(random_model(shape, seed=3, std={"": 0.2}), pieces, folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "code.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def small(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "small"
    trim(model, text, out)
    return out


def kept(small: Path, pieces: Tokenizer) -> list[int]:
    """Former ids, found by the texts of the pieces."""
    ids = {piece.text: i for i, piece in enumerate(pieces.pieces)}
    return [ids[piece.text] for piece in Tokenizer.load(small).pieces]


def both(model: Path, small: Path) -> tuple[Gemma, Gemma]:
    return load_model(model)[0], load_model(small)[0]


def test_weights_are_the_rows_of_the_kept_tokens(
    model: Path, small: Path, pieces: Tokenizer
) -> None:
    before, after = both(model, small)
    rows = torch.tensor(kept(small, pieces))
    assert len(rows) < pieces.vocab_size
    weights = after.state_dict()
    for name, tensor in before.state_dict().items():
        wanted = tensor[rows] if name == "embed_tokens.weight" else tensor
        assert torch.equal(weights[name], wanted), name


def test_logits_of_the_kept_tokens_are_the_same(
    model: Path, small: Path, pieces: Tokenizer
) -> None:
    before, after = both(model, small)
    rows = torch.tensor(kept(small, pieces))
    ids = Tokenizer.load(small).encode(TEXT[:150], bos=True)[:48]
    with torch.inference_mode():
        x_BTD = before.hidden_states(rows[ids][None])
        assert torch.equal(after.hidden_states(torch.tensor([ids])), x_BTD)
        expected, logits = before(rows[ids][None])[..., rows], after(torch.tensor([ids]))
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)


def test_the_engine_scores_and_continues_alike_to_the_bit(
    model: Path, small: Path, pieces: Tokenizer
) -> None:
    ids = kept(small, pieces)
    before, after = gemmule.load(str(model)), gemmule.load(str(small))
    settings = {"temperature": 0.0, "max_new_tokens": 24, "ignore_eos": True}
    dropped = {i: -100.0 for i in range(1024) if i not in set(ids) and i < pieces.vocab_size}
    for prompt in ("def ", "return", "self.pieces"):
        # A tiny random model prefers dropped tokens; with those banned the texts are equal.
        assert after.generate(prompt, **settings) == before.generate(
            prompt, logit_bias=dropped, **settings
        )


def test_the_report_measures_what_the_dropped_tokens_had(
    model: Path, small: Path, pieces: Tokenizer
) -> None:
    report = json.loads((small / "trim.json").read_text())
    ids = kept(small, pieces)
    assert report["vocabulary"] == {"before": 1024, "after": len(ids)}
    assert report["parameters"]["before"] - report["parameters"]["after"] == (1024 - len(ids)) * 32
    segmentation = report["segmentation"]
    assert segmentation["equal_documents"] == segmentation["documents"] > 0
    before, _ = both(model, small)
    encoded, length = pieces.encode(TEXT), 64  # the model's context
    rows = [[2, *encoded[at : at + 255]][:length] for at in range(0, len(encoded) - 254, 255)]
    with torch.inference_mode():
        p = before(torch.tensor(rows)).double().softmax(-1)
    mass = 1 - p[..., torch.tensor(ids)].sum(-1)
    dropped = report["dropped_probability"]
    assert dropped["tokens"] == mass.numel()
    assert dropped["mean"] == pytest.approx(mass.mean().item(), rel=1e-4)
    assert dropped["maximum"] == pytest.approx(mass.max().item(), rel=1e-4)
    assert all(len(row) == 2 for row in summary(report))


def test_it_converts_like_any_other_model(small: Path, tmp_path: Path) -> None:
    weight_VD = load_model(small)[0].embed_tokens.weight
    for to in ("gguf", "gemma_pytorch"):
        convert(small, tmp_path / to, to)  # compares the copy with the original
        copy, tokenizer = load_model(tmp_path / to)
        assert torch.equal(copy.embed_tokens.weight, weight_VD)
        assert tokenizer.encode(TEXT) == Tokenizer.load(small).encode(TEXT)


def test_it_is_trained_on(small: Path, text: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(small)
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"{n} {TEXT[: 400 + n]}")
    dataset = prepare(folder, tokenizer, tmp_path / "data")
    config = RunConfig.parse(
        {"steps": 1, "data": {"path": dataset.path, "seq_len": 32}, "model": {"init": str(small)}}
    )
    recipe = build_recipe(config, dataset)
    loss, _ = recipe.objective.loss(recipe.model, recipe.source.next())
    assert loss.isfinite()


def test_less_than_the_whole_text_may_be_covered(model: Path, text: Path, tmp_path: Path) -> None:
    report = trim(model, text, tmp_path / "out", coverage=0.6)
    assert 0.6 <= report["coverage"] < 1
    segmentation = report["segmentation"]
    assert segmentation["tokens_after"] > segmentation["tokens_before"]
    assert "segmentation" in dict(summary(report))
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_a_short_text_measures_no_probability(model: Path, tmp_path: Path) -> None:
    records = tmp_path / "short.jsonl"
    records.write_text('{"text": ""}\n{"text": "return None"}\n')
    report = trim(model, records, tmp_path / "out")
    assert report["dropped_probability"] is None
    assert dict(summary(report))["dropped probability"].startswith("not measured")


def test_what_is_in_the_way_is_refused(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="already in use"):
        trim(model, text, tmp_path / "out")
    with pytest.raises(DataError, match="absent"):
        trim(model, tmp_path / "absent.txt", tmp_path / "new")
    with pytest.raises(ConfigError, match="size 1,001 is more than the tokenizer has"):
        trim(model, text, tmp_path / "new", size=1001)
    quantize(model, "int8", tmp_path / "int8", calibrate="none")
    with pytest.raises(ConfigError, match="is quantized: trim the model"):
        trim(tmp_path / "int8", text, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_killed_trim_leaves_nothing_under_its_name(
    model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "gemmule", "trim", str(model), "--text", str(text)]
    with subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL) as process:
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    subprocess.run([*command, "--out", str(out), "--json"], check=True, capture_output=True)
    assert (out / "trim.json").is_file()
