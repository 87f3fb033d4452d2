"""Commands that are printed: they can be pasted into a shell, and start this program."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gemmule import shell

WORDS = ["plain", "two words", "it's", 'a "b"', "$HOME", "`id`", "a\\b", "*?[x]", "~/x", "#x", "!x",
         "café", "海", "", "a\nb", "\x1b[31m", "tab\there", "back\\slash\n'quote'",
         "caf\udce9"]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_a_shell_reads_the_words_that_were_meant(word: str) -> None:
    line = shell.command("generate", word)
    assert line.isprintable()
    echo = [
        sys.executable,
        "-c",
        "import os, sys; sys.stdout.buffer.write(os.fsencode(sys.argv[2]))",
    ]
    script = f'gemmule() {{ {shlex.join(echo)} "$@"; }}; {line}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout == os.fsencode(word)


def test_a_path_is_not_an_option() -> None:
    assert shell.command("generate", Path("-x"), "-x") == "gemmule generate ./-x -x"


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_program_as_it_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other, ours = made(tmp_path / "other/gemmule"), made(tmp_path / "my env/bin/gemmule")
    monkeypatch.setenv("PATH", "/usr/bin")
    for argument in ("my env/bin/gemmule", str(ours)):  # make quickstart; not on the PATH
        monkeypatch.setattr(sys, "argv", [argument])
        assert shlex.split(shell.command("chat")) == [argument, "chat"]
    monkeypatch.setenv("PATH", str(other.parent))
    assert shell.command("chat").startswith("'")  # another one is found first
    monkeypatch.setenv("PATH", str(ours.parent))  # an activated environment
    assert shell.command("chat") == "gemmule chat"


def test_the_program_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(Path(shell.__file__).with_name("__main__.py"))])
    monkeypatch.setattr(sys, "executable", str(made(tmp_path / "bin/python")))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert shell.command("chat") == f"{tmp_path}/bin/python -m gemmule chat"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert shell.command("chat") == "python -m gemmule chat"


def test_the_program_as_a_library() -> None:
    assert shell.command("chat") == "gemmule chat"
