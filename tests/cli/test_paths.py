"""Paths as they are typed: below ~, empty, too long, leading nowhere or in a circle."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from test_cli import VERBS, gemmule

import gemmule as package
from gemmule import cli, files
from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.record_config import RecordConfig
from gemmule.train.config import RunConfig

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def home(
    prepared: Path, pieces: Tokenizer, text_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A home folder with text, a tokenizer and data; the current folder is another one."""
    home = tmp_path / "my home"
    pieces.save(home / "tok")
    (home / "text").symlink_to(text_folder)
    (home / "data").symlink_to(prepared)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(home))
    return home


def test_a_tilde_that_no_shell_expanded(home: Path, tiny: Settings) -> None:
    gemmule("data", "~/text/*.txt", "--tokenizer=~/tok", "--out=~/data2", "--json")
    assert Dataset.open(Path("~/data2")).manifest["splits"]["train"]["documents"] > 9

    (home / "tiny.toml").write_text(tomli_w.dumps({**tiny(), "steps": 1, "data": {
        **tiny()["data"], "path": "~/data"}}))  # fmt: skip
    gemmule("train", "~/tiny.toml", "--out", "~/big", "--set", "data.path=~/data2")
    assert RunConfig.load(home / "big/config.toml").data.path == home / "data2"
    gemmule("distill", "~/tiny.toml", "--out", "~/small", "--set", "objective.teacher=~/big")
    assert RunConfig.load(home / "small/config.toml").data.path == home / "data"
    options = ("--max-new-tokens", 1, "--draft", "~/small")
    assert gemmule("generate", "~/big", "~/x", *options).startswith("~/x")
    assert gemmule("info", "~/big", "--json")
    assert package.load("~/big").config.parameters

    teacher = home / '🌱 "q" \\ $x'  # as it stands in a file of settings
    (home / "big").rename(teacher)
    gemmule("distill", "~/tiny.toml", "--out", "~/other", "--teacher", teacher)
    objective = RunConfig.load(home / "other/config.toml").objective
    assert objective.model_dump()["teacher"] == str(teacher)
    assert not list(Path().iterdir())


def test_a_home_that_is_not_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "info", "~no-such-user/x")
    assert "no home folder is known for ~no-such-user: write the path out" in message
    with pytest.raises(ConfigError, match="no home folder is known"):
        RecordConfig.parse({"teacher": "~no-such-user/x", "data": "d"})
    monkeypatch.delenv("HOME")  # the system's list of users says where it is
    assert files.expand("~/x") == Path("~/x").expanduser()
    assert files.expand("a/~/x") == Path("a/~/x")


def test_paths_that_no_file_can_have(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    for value, message in (
        ("", "--out is empty: give a path, or . for the current folder"),
        ("x" * 300, "is longer than a name or a path can be: 300 characters"),
        ("x/" * 3000, "is more than 500 folders deep"),
        ("a\0b", "'a\\x00b' holds a NUL byte"),
        ("circle", "circle is a symbolic link that leads in a circle"),
    ):
        got = refused(capsys, "tokenizer", "train", "--out", value)
        assert message in got, got
    assert "MODEL is empty" in refused(capsys, "info", "")
    assert "--teacher is empty" in refused(capsys, "distill", "--teacher", "", "--out", "o")
    assert "--base is empty" in refused(capsys, "convert", "a", "o", "--to", "hf", "--base", "")
    assert "--data-dir is empty" in refused(capsys, "eval", "m", "--data-dir", "")
    assert list(Path().iterdir()) == [Path("circle")]


def test_an_output_that_links_nowhere_says_so(
    text_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("gone/away")
    arguments = ("tokenizer", "train", text_folder, "--vocab-size", 512, "--out")
    message = refused(capsys, *arguments, tmp_path / "link")
    assert "it is a link to gone/away, which is not there: make that folder" in message


# Each argument and option that names a file, a folder or a model, as ~.
COMMANDS = """
quickstart --data ~ | quickstart --out ~ | tokenizer train ~ --out o | tokenizer train --out ~
data --tokens ~ --tokenizer t --out o | data-export ~ --out o | data-export d --out ~
data ~ --tokenizer t --out o | data --tokenizer ~ --out o | data --tokenizer t --out ~
train ~ --out o | train --out ~ | train --out o --set data.path=~ | train --out o --set model.init=~
record m --data d --out o --text ~ | distill --teacher m --out o --text ~
distill ~ --out o | distill --out ~ | distill --teacher ~ --out o | distill --targets ~ --out o
record ~ --data d --out o | record m --data ~ --out o | record m --data d --out ~ | verify ~
verify s --teacher ~ | verify s --data ~ | verify s --student ~
teacher-check ~ --data d | teacher-check m --data ~
ablate mixture --source ~ --source d --out o
ablate size --data ~ --out o | ablate size --data d --out ~
ablate size --teacher ~ --data d --out o
plan --teacher ~ --student 1m | plan --teacher 1m --student ~
plan --teacher 1m --student 1m --data ~ | plan --teacher 1m --student 1m --runs ~
plan --cluster h100x8 --student ~ | plan --cluster h100x8 --student 2b --teacher ~
serve ~ | serve m=~ | serve m --draft ~ | serve m --key-file ~ | serve m --tls-cert ~ --tls-key k
serve m --tls-key ~ --tls-cert c
generate ~ x | generate m x --draft ~ | chat --url http://127.0.0.1:1 --key-file ~ | chat ~
chat m --draft ~ | bench ~ | doctor ~ | info ~
convert ~ o --to hf | convert m ~ --to hf | convert m o --to hf --text ~
convert a o --to hf --base ~
quantize ~ --to int4 | quantize m --to int4 --out ~ | quantize m --to int4 --calibrate ~
quantize m --to int4 --eval-text ~ | eval ~ | eval m ~ | eval m --out ~ | eval m --data ~
eval m --data-dir ~ | safety ~ | safety m --toxicity-classifier ~ | safety m --judge ~
safety m --gate ~ | safety m --baseline ~ | safety m --data-dir ~ | safety m --out ~
memorization ~ | memorization r --data ~ | memorization r --against ~ | memorization r --out ~
canaries ~ --out o | canaries d --out ~ | card ~
trim ~ --out o | trim m --out ~ | trim m --text ~ --out o
tokenizer trim ~ --out o | tokenizer trim t --out ~ | tokenizer trim t --text ~ --out o
sft ~ --out o | sft --out ~ | sft --model ~ --out o | sft --file ~ --out o | sft --data ~ --out o
sft --targets ~ --out o | reward ~ --out o | reward --out ~ | reward --model ~ --out o
reward --file ~ --out o | reward --data ~ --out o | align ~ --out o | align --out ~
align --model ~ --out o | align --file ~ --out o | align --data ~ --out o
align --teacher ~ --out o | synthesize ~ --teacher m --out o
synthesize p --teacher ~ --out o | synthesize p --teacher m --out ~
merge ~ m --out o | merge m m --out ~ | merge m m --base ~ --out o | warp ~ --out o | warp --out ~
gate ~ | gate m --parent ~ | gate m --data ~ | gate m --base-data ~ | gate m --config ~
gate m --out ~ | tasks arithmetic --out ~
launch --slurm train ~ --out o | launch --slurm train --out ~
launch --slurm --script ~ train --out o
ledger ~ | ledger r --runs ~ | ledger r --plot ~ | when ~ --hours 1
quality fit --good ~ --bad b --out o | quality fit --good g --bad ~ --out o
quality fit --good g --bad b --out ~ | quality preview --classifier ~
quality preview --classifier c --text ~ | quality preview --classifier c --recipe ~
quality score ~ --out o | quality score m --out ~ | quality score m --out o --recipe ~
quality score m --out o --text ~ | decontamination --out ~ | decontamination --out o --data-dir ~
"""


@pytest.mark.parametrize("line", COMMANDS.replace("\n", " | ").strip(" |").split(" | "))
def test_a_tilde_in_every_place(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("~", "~no-such-user/x") for word in line.split()]
    given = ["--set", "steps=1"] if words[0] in {"train", "distill", "launch"} else []
    assert "no home folder is known for ~no-such-user" in refused(capsys, *words, *given)
    assert not list(Path().iterdir())


def test_every_command_is_there() -> None:
    verbs = {" ".join(verb) for verb in VERBS if verb not in ([], ["tokenizer"], ["quality"])}
    assert verbs == {v for v in verbs if f" {v} " in COMMANDS.replace("\n", " ")}
