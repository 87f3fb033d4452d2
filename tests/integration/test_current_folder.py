"""What lies in the current folder changes nothing, and the folder itself can be an output."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gemmule
from gemmule import files
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.hf.writer import save_model
from gemmule.checkpoints.load import open_checkpoint
from gemmule.errors import OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.quantize import quantize
from gemmule.runs.power.machine import user_settings
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from models import TINY, random_model, tiny_config

SHADOWS = ("json", "torch", "numpy", "typer", "rich", "safetensors", "shlex", "tomllib", "secrets")


@pytest.fixture(scope="module")
def model(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(random_model(tiny_config(TINY, vocab_size=pieces.vocab_size)), pieces, folder)
    return folder


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with everything that some library would read if it could."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the current folder')\n")
    (folder / "sitecustomize.py").write_text("raise SystemExit('sitecustomize.py')\n")
    (folder / ".codecarbon.config").write_text("[codecarbon]\nforce_cpu_power = 1000000\n")
    (folder / "matplotlibrc").write_bytes(b"font.size: \xff\xfe\n")
    (folder / "pyproject.toml").write_text("[[[")
    (folder / ".env").write_text("HF_HUB_OFFLINE=1\nGEMMULE_NATIVE=0\n")
    (folder / "nltk_data").mkdir()
    return folder


def run(
    folder: Path, *arguments: object, module: str = "gemmule.cli"
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("module", ["gemmule", "gemmule.cli"])
def test_files_named_like_modules(module: str, hostile: Path, model: Path, tmp_path: Path) -> None:
    command = ("info", model) if module == "gemmule" else ("generate", model, "the sea")
    there = run(hostile, *command, module=module)
    assert there.returncode == 0, there.stderr
    assert there.stdout == run(tmp_path, *command).stdout


def test_programs_that_are_started(hostile: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    done = run(hostile, "convert", model, tmp_path / "out", "--to", "hf")
    assert done.returncode == 0, done.stderr
    assert "asking transformers" in done.stderr


def test_every_python_is_started_without_the_current_folder() -> None:
    starts = 0
    for path in Path(gemmule.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List) and node.elts:
                first = [ast.unparse(element) for element in node.elts[:2]]
                if first[0] == "sys.executable":
                    # -I leaves out the current folder too.
                    assert first[1] in ("'-P'", "'-I'"), f"{path}: {ast.unparse(node)}"
                    starts += 1
    assert starts >= 3


def test_settings_of_the_meter(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".codecarbon.config").write_text("[codecarbon]\npue = 1.2\nforce_ram_power = 7\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("CODECARBON_PUE", "1.5")
    monkeypatch.chdir(hostile)
    assert user_settings() == {"pue": "1.5", "force_ram_power": "7"}


def test_plots(hostile: Path) -> None:
    pytest.importorskip("matplotlib")
    code = """
import os
from gemmule.report import svg
with svg.figures("a plot", "#000", "#000") as (figure, _):
    print(len(svg.text_of(figure())), os.getcwd())
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=hostile, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1] == str(hostile)


def test_it_has_been_deleted(model: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
        "from gemmule.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "info", str(model)],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the current folder cannot be used" in done.stderr
    assert "cd to another one" in done.stderr


@pytest.mark.usefixtures("no_meter")
def test_a_run_in_it(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RunConfig.parse(tiny(steps=4))
    run_training(settings, Path())
    assert (tmp_path / "result.json").is_file()
    with open_checkpoint(".") as checkpoint:
        assert checkpoint.tensors
    with pytest.raises(OutputError, match="already in use"):
        run_training(settings, Path())


def test_it_is_the_output(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, write in (
        ("export", lambda: convert(model, Path(), "hf", verify=False)),
        ("packed", lambda: quantize(model, "int8", Path())),
    ):
        out = tmp_path / name
        out.mkdir()
        monkeypatch.chdir(out)
        identity = out.stat().st_ino
        write()
        assert out.stat().st_ino == identity == Path().stat().st_ino
        with open_checkpoint(".") as checkpoint:
            assert checkpoint.tensors
        assert not [entry for entry in out.iterdir() if entry.name.startswith(".")]
        with pytest.raises(OutputError, match="already in use"):
            write()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["export", "packed"]


def test_an_export_into_it_that_was_interrupted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)

    def stop(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, Path(), "hf", verify=False, progress=stop)
    (left,) = out.iterdir()
    (out / ".out.lock").touch()  # as a process that was killed leaves it
    assert left.name == ".out.partial"
    convert(model, Path(), "hf", verify=False)
    assert (out / "export.json").is_file()
    assert not list(out.glob(".*"))


def test_a_folder_that_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount point, such as a container's volume, may be the only place one can write to."""
    out = tmp_path / "volume"
    (out / "old").mkdir(parents=True)
    (out / "old" / "file").touch()
    (out / "same").touch()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    identity = out.stat().st_ino
    with files.atomic_dir(out) as tmp:
        (tmp / "same").write_text("new")
        (tmp / "sub").mkdir()
        assert (out / "old").exists()
    assert out.stat().st_ino == identity
    assert sorted(entry.name for entry in out.iterdir()) == ["same", "sub"]
    assert (out / "same").read_text() == "new"
    with pytest.raises(ZeroDivisionError), files.atomic_dir(out) as tmp:
        raise ZeroDivisionError
    assert sorted(entry.name for entry in out.iterdir()) == ["same", "sub"]


def test_a_link_to_the_output(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with files.atomic_dir(link) as tmp:
        (tmp / "file").touch()
        assert tmp.parent == tmp_path
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "file").exists()
    (tmp_path / "target.txt").touch()
    (tmp_path / "link.txt").symlink_to("target.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "target.txt").read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "elsewhere", "link", "link.txt", "target.txt",
    ]  # fmt: skip
