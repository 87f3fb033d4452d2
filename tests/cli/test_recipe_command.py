"""gemmule data --recipe."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli import gemmule

from gemmule import cli, files
from gemmule.data.dataset import Dataset
from gemmule.model.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("no_meter")
Refused = Callable[..., str]


@pytest.fixture
def here(
    text_folder: Path, pieces: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with a tokenizer and a recipe, as the current one."""
    pieces.save(tmp_path / "tok")
    (tmp_path / "text").symlink_to(text_folder)
    (tmp_path / "data.toml").write_text(
        'name = "tales"\n[[sources]]\nname = "sea"\npath = "text"\nlicense = "CC0-1.0"\n'
        "[heuristics]\nrules = ['gopher_quality']\n"
        "gopher_quality = { min_words = 10, min_word_length = 0, min_stop_words = 0 }\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_a_recipe_from_the_command_line() -> None:
    command = ("data", "--recipe", "data.toml", "--tokenizer", "tok", "--out", "data")
    printed = gemmule(*command, "--workers", 1, "--explain", 2)
    assert "gopher_quality: min_words" in printed
    assert printed.count("  sea/") == 2
    assert "data/page.html" in printed
    made = Dataset.open(Path("data"))
    assert made.name == "tales"
    assert made.licence == "CC0-1.0"
    assert made.split("heldout").token_count
    again = json.loads(gemmule(*command, "--json"))
    assert again["fingerprint"] == made.fingerprint
    assert again["dropped"]["gopher_quality: min_words"] > 5
    assert again["sources"]["sea"]["license"] == "CC0-1.0"
    (line,) = files.read_text(Path("data/ledger.jsonl")).splitlines()[:1]
    assert json.loads(line)["kind"] == "data"


@pytest.mark.usefixtures("here")
def test_records_that_could_not_be_read_are_named() -> None:
    rows = [json.dumps({"text": f"A tale of ship {n}, and how she came home."}) for n in range(9)]
    Path("log.jsonl").write_text("\n".join([*rows, "{broken", '{"title": "no text"}']))
    Path("log.toml").write_text('[[sources]]\nname = "log"\npath = "log.jsonl"\n')
    command = ("data", "--recipe", "log.toml", "--tokenizer", "tok", "--out", "log")
    printed = gemmule(*command, "--workers", 1)
    assert "malformed JSON line: 1" in printed
    assert "no field 'text': 1" in printed
    assert "malformed JSON line" in files.read_text(Path("log/page.html"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--explain", "3"], "--explain is for recipes: give one with --recipe"),
        (["--recipe", "data.toml", "text"], "TEXT cannot be used with --recipe"),
        (["--recipe", "data.toml", "--field", "a", "--trim"], "--field, --trim cannot be used"),
        (["--recipe", "data.toml", "--tasks", "2"], "--executor and --tasks go together"),
        (["--recipe", "data.toml", "--sbatch", "time=1"], "--sbatch is for --executor slurm"),
        (["--recipe", "data.toml", "--explain", "21"], "--explain 21: use 1 to 20"),
        (["--recipe", "data.toml", "--workers", "0"], "workers 0 is too few"),
        (["--recipe", "none.toml"], "no config file at none.toml"),
        (["--recipe", "data.toml", "--executor", "local", "--tasks", "0"], "tasks 0 is too few"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", *options, "--tokenizer", "tok", "--out", "data"])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
