"""From text to trimmed data in one command, of three commands."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from test_cli import gemmule
from test_paths import refused

from gemmule.checkpoints.hf.writer import save_model
from gemmule.data.dataset import Dataset
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from gemmule.teachers.logit_store import Store
from models import TINY, random_model, tiny_config

pytestmark = pytest.mark.usefixtures("no_meter")
Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def full() -> Tokenizer:
    return train_tokenizer([Path(ast.__file__).read_text()], 900)


@pytest.fixture(scope="module")
def teacher(full: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save_model(random_model(tiny_config(TINY, vocab_size=900)), full, folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for n in range(60):
        (folder / f"{n}.txt").write_text(f"# {n}\n" + "def visit(self, node):\n" * (n % 7 + 5))
    return folder


def test_data(full: Tokenizer, teacher: Path, text: Path, tmp_path: Path) -> None:
    options = ("data", text, "--tokenizer", teacher, "--out", tmp_path / "data", "--trim")
    about = json.loads(gemmule(*options, "--json"))["trimmed"]
    dataset = Dataset.open(tmp_path / "data")
    assert about["vocabulary"] == {"before": 900, "after": dataset.tokenizer.vocab_size}
    assert about["coverage"] == 1.0
    assert about["segmentation"]["equal_documents"] == 60
    ids = dataset.split("train").document(0)
    assert full.decode(full.encode(dataset.tokenizer.decode(ids))) == dataset.tokenizer.decode(ids)
    # Finished: the same command says the same.
    assert "segmentation equal on the whole text" in gemmule(*options)


def test_the_tokenizer_of_a_model_on_the_hub(
    full: Tokenizer, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address is no path, which would lose a slash."""
    models = {"hf://google/gemma-2-2b": full}
    monkeypatch.setattr(
        "gemmule.teachers.whole_tokenizer.gemma_tokenizer", lambda name: models[name]
    )
    gemmule("data", text, "--tokenizer", *models, "--out", tmp_path / "data", "--trim")
    assert Dataset.open(tmp_path / "data").tokenizer.vocab_size < full.vocab_size


def test_data_of_a_size(teacher: Path, text: Path, tmp_path: Path) -> None:
    gemmule(
        "data",
        text,
        "--tokenizer",
        teacher,
        "--trim-size",
        700,
        "--out",
        tmp_path / "data",
        "--json",
    )
    assert Dataset.open(tmp_path / "data").tokenizer.vocab_size == 700


def test_record(teacher: Path, text: Path, tmp_path: Path) -> None:
    command = (
        "record", teacher, "--text", text, "--data", tmp_path / "data", "--out", tmp_path / "store",
        "--seq-len", 32, "--tokens", 200, "--json",
    )  # fmt: skip
    result = json.loads(gemmule(*command))
    assert result["dropped_probability"]["mean"] > 0
    store = Store.open(tmp_path / "store")
    assert store.vocab_size == Dataset.open(tmp_path / "data").tokenizer.vocab_size < 900
    assert json.loads(gemmule(*command))["tokens"] == result["tokens"]


def test_distill(teacher: Path, text: Path, tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(steps=1)
    settings["data"]["path"] = str(tmp_path / "data")
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(settings))
    gemmule(
        "distill", tmp_path / "tiny.toml", "--teacher", teacher, "--text", text,
        "--trim-coverage", 0.99, "--out", tmp_path / "run",
    )  # fmt: skip
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["vocab_size"] < 900
    assert manifest["parent"]["vocabulary"]["kept"] == manifest["model"]["vocab_size"]


def test_without_a_text_nothing_is_trimmed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("record", "m", "--data", tmp_path, "--out", tmp_path / "o", "--trim-size", 500)
    assert "--trim-size has no meaning without --text" in refused(capsys, *options)
    server = ("record", "http://127.0.0.1:1/v1", "--data", tmp_path / "d", "--out", tmp_path / "o")
    assert "a model on this machine" in refused(capsys, *server, "--text", tmp_path)
