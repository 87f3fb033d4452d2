"""gemmule quantize, from a run, a file and a folder of data to a folder with its measured loss."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gemmule import cli
from gemmule.checkpoints.load import load_model
from gemmule.checkpoints.packed.reader import load_quantized
from gemmule.errors import ConfigError, OutputError
from gemmule.quantize import quantize
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
QUANTIZE = [sys.executable, "-m", "gemmule.cli", "quantize"]


@pytest.fixture(scope="module")
def run(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, whose data is at hand."""
    out = tmp_path_factory.mktemp("quantize") / "run"
    patch = pytest.MonkeyPatch()
    patch.setattr("gemmule.runs.carbon.start_tracker", _no_meter)
    run_training(RunConfig.parse(tiny(steps=4)), out)
    patch.undo()
    return out


def _no_meter(*_: object) -> None:
    raise RuntimeError("left out by the test")


@pytest.fixture
def alone(run: Path, tmp_path: Path) -> Path:
    """The model without its run."""
    return Path(shutil.copytree(run / "model", tmp_path / "alone"))


@pytest.fixture(scope="module")
def texts(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files of text."""
    folder = tmp_path_factory.mktemp("texts")
    for name, pattern in (("a.txt", "*1.txt"), ("b.txt", "*2.txt")):
        text = "\n".join(p.read_text() for p in sorted(text_folder.glob(pattern)))
        (folder / name).write_text(text)
    return folder / "a.txt", folder / "b.txt"


def test_a_run_is_rounded_for_its_training_text_and_measured_on_its_validation_text(
    run: Path, tmp_path: Path
) -> None:
    report = quantize(run, "int4", tmp_path / "q", head="int8")
    assert json.loads((tmp_path / "q/quantization.json").read_text()) == report
    assert report["calibration"]["text"].endswith(", train")
    assert report["measured"]["text"].endswith(", validation")
    assert 0 < report["measured"]["kl_nats"] < 0.05
    assert report["measured"]["perplexity"] != report["measured"]["parent_perplexity"]
    loaded = load_quantized(tmp_path / "q")
    assert (loaded.format, loaded.head, loaded.measured) == ("int4", "int8", report)
    assert loaded.bits_per_weight == report["bits_per_weight"]
    assert report["out"] == str(tmp_path / "q")


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantize(run, "int4", tmp_path / name)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert a == b


def test_a_model_alone_is_not_measured_and_says_so(alone: Path, tmp_path: Path) -> None:
    report = quantize(alone, "int8", tmp_path / "q")
    assert report["measured"] is None
    assert "no held-out text" in report["not_measured"]
    assert report["calibration"] is None
    shown = CliRunner().invoke(cli.app, ["info", str(tmp_path / "q")]).output
    assert "not measured" in shown


def test_data_that_is_gone_is_not_an_error(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run, tmp_path / "moved"))
    config = (moved / "config.toml").read_text()
    data = next(line for line in config.splitlines() if line.startswith("path ="))
    (moved / "config.toml").write_text(config.replace(data, 'path = "/nowhere/data"'))
    report = quantize(moved, "int4", tmp_path / "q")
    assert report["measured"] is None
    assert report["calibration"] is None


def test_text_files(alone: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    report = quantize(alone, "int4", tmp_path / "q", calibrate=texts[0], eval_text=texts[1])
    assert report["calibration"]["text"] == "a.txt"
    assert report["measured"]["text"] == "b.txt"
    with pytest.raises(ConfigError, match="is the text to calibrate on"):
        quantize(alone, "int4", tmp_path / "r", calibrate=texts[0], eval_text=texts[0])


def test_a_data_folder_gives_both(alone: Path, prepared: Path, tmp_path: Path) -> None:
    report = quantize(alone, "int4", tmp_path / "q", calibrate=prepared)
    assert report["calibration"]["text"].endswith(", train")
    assert report["measured"]["text"].endswith(", validation")


def test_without_calibration(run: Path, tmp_path: Path) -> None:
    assert quantize(run, "int4", tmp_path / "q", calibrate="none")["calibration"] is None


def test_the_default_place_is_beside_the_model(alone: Path) -> None:
    report = quantize(alone, "int8")
    assert report["out"] == str(alone.with_name("alone-int8"))
    with pytest.raises(OutputError, match="already in use: choose another folder with --out"):
        quantize(alone, "int8")


def test_what_is_packed_is_not_packed_again(alone: Path, tmp_path: Path) -> None:
    quantize(alone, "int8", tmp_path / "q")
    with pytest.raises(ConfigError, match="quantized already"):
        quantize(tmp_path / "q", "int4", tmp_path / "r")


def test_a_text_that_is_too_short(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the sea")
    with pytest.raises(ConfigError, match=r"has \d+ tokens; give a text of 64 or more"):
        quantize(alone, "int4", tmp_path / "q", calibrate=tmp_path / "short.txt")
    assert not (tmp_path / "q").exists()


def test_a_failure_while_measuring_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gemmule.quantize.compare", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(run, "int8", tmp_path / "q")
    assert not list(tmp_path.iterdir())


def test_the_command(run: Path, tmp_path: Path) -> None:
    arguments = ["quantize", str(run), "--to", "int4", "--out", str(tmp_path / "q"), "--json"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "q/quantization.json").read_text())
    shown = CliRunner().invoke(cli.app, ["info", str(tmp_path / "q")]).output
    assert "bits per weight" in shown
    assert "KL to the original" in shown
    again = CliRunner().invoke(cli.app, ["generate", str(tmp_path / "q"), "the", "--seed", "1"])
    assert again.exit_code == 0, again.output
    model, _ = load_model(tmp_path / "q")
    assert model.embed_tokens.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "int5"], "unknown format 'int5'"),
        (["--to", "int4", "--head", "f16"], "did you mean 'bf16'?"),
        (
            ["--to", "int4", "--calibrate", "nothing-here.txt"],
            "no file or folder at nothing-here.txt",
        ),
        (
            ["--to", "int4", "--eval-text", "nothing-here.txt"],
            "no file or folder at nothing-here.txt",
        ),
    ],
)
def test_mistakes(
    alone: Path, tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    out = tmp_path / "q"
    with pytest.raises(SystemExit) as e:
        cli.main(["quantize", str(alone), "--out", str(out), *arguments])
    assert e.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_killed_it_leaves_nothing_under_the_final_name(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "q"
    command = [*QUANTIZE, str(run), "--to", "int4", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("writing" in line for line in process.stderr)
    process.kill()
    process.communicate()
    assert not out.exists()
    assert quantize(run, "int4", out)["measured"]
