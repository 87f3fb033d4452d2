"""gemmule reward, from files to a model that is a reward."""

import json
from pathlib import Path

import pytest

from gemmule.cli import main
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.rewards.by_name import open_reward
from judged_answers import CONTEXT, pairs, parent

pytestmark = pytest.mark.usefixtures("no_meter")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    parent(pieces, folder / "parent")
    lines = [
        {
            "prompt": [m.to_dict() for m in pair.prompt],
            "chosen": [m.to_dict() for m in pair.chosen],
            "rejected": [m.to_dict() for m in pair.rejected],
        }
        for pair in pairs(60)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def arguments(files: Path, out: Path) -> list[str]:
    settings = {
        "steps": "2",
        "data.seq_len": str(CONTEXT),
        "data.batch_size": "4",
        "runtime.compile": "false",
        "runtime.dtype": '"float32"',
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    given = ["--model", str(files / "parent"), "--file", str(files / "pairs.jsonl")]
    return ["reward", *given, *sets, "--out", str(out)]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(list(words))
    return int(exit_.value.code or 0)


def test_from_files_to_a_reward(files: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert run(*arguments(files, out)) == 0
    shown = capsys.readouterr().err
    for text in (
        "pairs:",
        "reward model",
        "the shorter answer",
        "words of a refusal",
        "gemmule align",
    ):
        assert text in shown
    assert open_reward(str(out)).score([]) == []


def test_the_result_as_json(files: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "run"
    assert run(*arguments(files, out), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((out / "result.json").read_text())
    assert run("reward", "--resume", "--out", str(out), "--json") == 0
    assert json.loads(capsys.readouterr().out) == result


def test_a_resumed_run_takes_no_other_model(files: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["reward", "--resume", "--model", str(files / "parent"), "--out", str(tmp_path)]
    assert run(*words) == 2
    assert "--resume continues with the run's saved settings" in capsys.readouterr().err
