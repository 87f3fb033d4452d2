"""gemmule data --tokens, gemmule data-export and --subset, as they are typed."""

import json
from pathlib import Path

import pytest
from test_cli import gemmule

from gemmule import cli
from gemmule.data.dataset import Dataset
from gemmule.model.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("no_meter")


@pytest.fixture
def tokenizer(pieces: Tokenizer, tmp_path: Path) -> Path:
    pieces.save(tmp_path / "tok")
    return tmp_path / "tok"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_from_data_to_token_files_and_back(
    prepared: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gemmule("data-export", prepared, "--out", tmp_path / "ds")
    about = json.loads(gemmule("data-export", prepared, "--out", tmp_path / "ds", "--json"))
    original = Dataset.open(prepared)
    assert about["fingerprint"] == original.fingerprint
    command = ["data", "--tokens", tmp_path / "ds", "--tokenizer", tokenizer]
    shown = json.loads(gemmule(*command, "--out", tmp_path / "data", "--json"))
    assert shown["fingerprint"] == original.fingerprint
    message = refused(capsys, *command, "--out", tmp_path / "o", "--field", "text")
    assert "--tokens names files of ids, which have no use for --field" in message
    message = refused(capsys, *command, "--out", tmp_path / "o", "--subset", "en")
    assert "no use for --subset" in message


def test_a_subset_of_a_data_set_of_the_hub(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "set/en").mkdir(parents=True)
    (tmp_path / "set/fr").mkdir()
    (tmp_path / "set/README.md").write_text("---\nlicense: mit\ntask_categories: [x]\n---\n")
    for language in ("en", "fr"):
        rows = [{"text": f"{language} row {n} has its own words {n * 7}"} for n in range(30)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "set" / language / "train.jsonl").write_text(lines)
    shown = json.loads(
        gemmule("data", tmp_path / "set", "--subset", "fr", "--tokenizer", tokenizer, "--out",
                tmp_path / "data", "--near-duplicates", "ignore", "--json")
    )  # fmt: skip
    assert shown["licence"] == "mit"
    assert sum(split["documents"] for split in shown["splits"].values()) == 30
