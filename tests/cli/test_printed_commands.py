"""Commands that are printed at a command's end: what is pasted is what was meant."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer

from gemmule import cli, quickstart
from gemmule.errors import Interrupted

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")
NAMES = [
    "run",
    "my run",
    "it's",
    "$HOME",
    "-x",
    "é 海",
    "a;b&c",
    '"q"',
    "a*b",
    "(c)",
    "#d",
    "[/x]",
    "a:smile:",
]


def commands(message: str) -> list[list[str]]:
    """The words of each command below "next:", as a shell reads them."""
    _, _, below = message.partition("next:\n")
    lines = below.splitlines()
    assert lines
    assert all(line.startswith("  gemmule ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def parsed(words: list[str]) -> dict[str, Any]:
    """The values of a command's parameters."""
    group: Any = typer.main.get_command(cli.app)
    command = group.commands[words[0]]
    values: dict[str, Any] = command.make_context(words[0], list(words[1:])).params
    return values


@pytest.mark.parametrize("name", NAMES)
def test_the_quickstart_s_next_commands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    figures = {"nats_per_token": 1.0, "perplexity": 1.0, "bits_per_byte": 1.0,
               "train_tokens": 1, "train_flops": 1.0, "energy_wh": None}  # fmt: skip
    pair = {"scratch": figures, "distilled": figures}
    best = {**figures, "epochs": 1}
    scarce = {
        "scratch": best, "distilled": best, "text": {"tokens": 1, "bytes": 2},
        "recording": {"flops": 1.0}, "students_of_teacher": 2,
    }  # fmt: skip
    comparison = {
        "equal_tokens": pair, "equal_compute": pair, "scarce_text": scarce, "teacher": figures,
    }  # fmt: skip
    quickstart._conclude(Path(name), comparison, 1.0)
    generate, chat, serve, card = map(parsed, commands(capsys.readouterr().err))
    student = Path(name) / "student"
    assert (Path(generate["model"]), generate["prompt"]) == (student, "def ")
    assert Path(chat["model"]) == student
    assert [Path(model) for model in serve["models"]] == [student]
    assert (card["run"], card["licence"]) == (Path(name), "apache-2.0")


def test_the_next_commands_of_a_run(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """They are typed, as printed, and work."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(tomli_w.dumps({**tiny(), "steps": 1}))
    out = "-my $run's"

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        return shown.err

    for words in commands(run("train", "tiny.toml", f"--out={out}")):
        run(*words)
    assert (Path(out) / "card" / "index.html").is_file() or (Path(out) / "README.md").is_file()
    (words,) = commands(run("quantize", f"./{out}", "--to", "int4", "--out", "a b"))
    run(*words)


@pytest.mark.parametrize(
    ("line", "work"),
    [
        ("quickstart", "gemmule.quickstart.run_quickstart"),
        ("train --set data.path=d --set steps=1", "gemmule.train.run.run_training"),
    ],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stopped after step 3 of 9")])
def test_a_stopped_run_prints_the_command_that_continues(
    line: str, work: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*_: object, **__: object) -> None:
        Path("-my run").mkdir()
        Path("-my run", "config.toml").touch()
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, stop)
    with pytest.raises(SystemExit) as ended:
        cli.main([*line.split(), "--out", "-my run"])
    assert ended.value.code == 130
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("gemmule: stopped")
    words = shlex.split(message.rpartition(": gemmule ")[2])
    values = parsed(words)
    assert (Path(values["out"]), values["resume"]) == (Path("-my run"), True)


def test_a_long_command_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    from gemmule.console import next_commands

    next_commands("gemmule generate " + "long/" * 60 + "model 'The sea'")
    assert len(capsys.readouterr().err.splitlines()) == 2


ODD = ["a.b=1", "=1", "a", "", "a=", "steps=", "steps=[", "steps=1e999", "steps=nan", "a..b=1",
       ".=1", "data=1", "steps.x=1", "é=1", "steps=1\n2", "model.preset=''", "steps=0x10",
       "steps=" + "9" * 5000, "steps=" + "[" * 9000]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=lambda value: value[:12])
def test_odd_settings_are_one_line(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--set", value, "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gemmule: ")
    assert not (tmp_path / "out").exists()
