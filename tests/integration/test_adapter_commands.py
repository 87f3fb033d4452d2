"""An adapter wherever a model can be named: each command runs what peft's merge would give."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gemmule
from gemmule import cli
from gemmule.checkpoints import verify
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import load_model
from gemmule.data.dataset import Dataset
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.open import open_teacher
from models import DISTINCT, TOKENS, random_model, tiny_config
from peft_adapters import base_model, edit_config, merged_by_peft, quiet, train_adapter


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(a) for a in arguments])
        except SystemExit as e:
            return int(e.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("main always exits")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, pieces: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(random_model(tiny_config(DISTINCT)), pieces, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    return train_adapter(base, folder, use_dora=True, target_modules=["q_proj", "up_proj"])


def test_generates_as_transformers_with_peft(base: Path, adapter: Path, pieces: Tokenizer) -> None:
    import peft

    prompt = "the sea and the ship"
    ids = torch.tensor([pieces.encode(prompt, bos=True)])
    with quiet():
        model = peft.PeftModel.from_pretrained(base_model(base), adapter)
        theirs = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, ids.shape[1] :].tolist()
    lm = gemmule.load(adapter)
    assert lm.generate(prompt, max_new_tokens=12, temperature=0.0) == pieces.decode(theirs)
    code, out, _ = run("generate", adapter, prompt, "--max-new-tokens", 12, "--temperature", 0)
    assert code == 0
    assert pieces.decode(theirs).strip() in out


def test_a_teacher_has_the_merged_weights(base: Path, adapter: Path, prepared: Path) -> None:
    teacher = open_teacher(str(adapter), Dataset.open(prepared), 24)
    theirs = merged_by_peft(base, adapter, TOKENS)
    for name, weight in teacher.model.state_dict().items():
        bound = 2e-7 * theirs.weights[name].abs().max()
        assert (weight - theirs.weights[name]).abs().max() <= bound


def test_quantized_it_is_the_merged_model_quantized(adapter: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(adapter)
    save_model(model, tokenizer, tmp_path / "merged")
    for source in (adapter, tmp_path / "merged"):
        code, _, err = run("quantize", source, "--to", "int8", "--out", tmp_path / source.name[:3])
        assert code == 0, err
    packed = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("ada", "mer")]
    assert packed[0] == packed[1]


def test_convert_with_a_base(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify.peers, "installed", lambda _: None)
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    edit_config(moved, base_model_name_or_path="/lost/model")
    code, out, err = run("convert", moved, tmp_path / "out", "--to", "hf")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert "is a DoRA adapter of rank 4 for /lost/model" in line
    assert line.endswith(f" convert {moved} OUT --to hf --base MODEL")
    assert not (tmp_path / "out").exists()
    code, out, err = run("convert", moved, tmp_path / "out", "--to", "hf", "--base", base, "--json")
    assert code == 0, err
    assert json.loads(out)["verified"]["weights"]["equal"]
    expected = load_model(adapter)[0].state_dict()
    for name, weight in load_model(tmp_path / "out")[0].state_dict().items():
        assert torch.equal(weight, expected[name])


@pytest.mark.parametrize("command", [["info"], ["generate", "the"], ["doctor"]])
def test_a_lost_base_is_one_line(adapter: Path, tmp_path: Path, command: list[Any]) -> None:
    moved = Path(shutil.copytree(adapter, tmp_path / "moved"))
    edit_config(moved, base_model_name_or_path="/lost/model")
    name, *more = command
    code, _, err = run(name, moved, *more)
    assert code == 2
    *before, line = err.splitlines()
    assert bool(before) == (name == "info")  # which shows what is known
    assert line.startswith(f"gemmule: {moved} is a DoRA adapter of rank 4 for /lost/model (")


def test_info(base: Path, adapter: Path) -> None:
    code, _, err = run("info", adapter)
    assert code == 0
    # A long path is folded at any character.
    assert f"a DoRA adapter of rank 4 for {base}".replace(" ", "") in "".join(err.split())
