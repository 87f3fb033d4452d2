"""gemmule sft: from a file to a model that answers, and what it refuses."""

import json
from pathlib import Path

import pytest

from gemmule import files
from gemmule.checkpoints.hf.writer import save_model
from gemmule.cli import main
from gemmule.model.tokenizer import Tokenizer
from models import TINY, random_model, tiny_config

pytestmark = pytest.mark.usefixtures("no_meter")
SETTINGS = """
steps = 3
[data]
seq_len = 64
batch_size = 2
[objective]
kind = "sft"
stop_prompts = 2
max_new_tokens = 4
[runtime]
compile = false
threads = 1
"""


@pytest.fixture(scope="module")
def base(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(random_model(tiny_config(TINY, vocab_size=512)), pieces, folder)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"the sea {n}", "completion": "a ship " * (n % 3 + 1)} for n in range(30)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "no answer"}])))
    (tmp_path / "sft.toml").write_text(SETTINGS)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[object, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["sft", *map(str, words)])
    shown = capsys.readouterr()
    return end.value.code, shown.out, shown.err


def test_from_a_file_to_a_run(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "sft.toml", tmp_path / "run"
    code, shown, told = run(
        capsys, config, "--model", base, "--file", chats, "--epochs", 1, "--out", out, "--json"
    )
    assert code == 0, told
    assert json.loads(shown)["stop_rate"]["n"] >= 1
    assert "dropped, no answer: 1 (chats.jsonl#30)" in told
    manifest = files.read_json(out / "manifest.json")
    assert manifest["kind"] == "sft" and manifest["parent"]["path"] == str(base)
    assert files.read_json(out / "data/manifest.json")["name"] == "chats.jsonl"
    # Another run reads the same data, and this one is finished.
    again = tmp_path / "again"
    code, _, told = run(
        capsys, config, "--model", base, "--data", out / "data", "--out", again, "--json"
    )
    assert code == 0, told
    assert run(capsys, "--resume", "--out", again, "--json")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{config}", "--file", "{chats}"], "post-training starts from a model: name it with"),
        (["{config}", "--model", "{base}"], "'data.path' is required"),
        (["{config}", "--model", "{base}", "--file", "{tmp}/none.jsonl"], "no file or folder at"),
        (
            ["{config}", "--model", "{base}", "--file", "{chats}", "--data", "{tmp}"],
            "give files or --data, not both",
        ),
        (["{config}", "--model", "{base}", "--data", "{tmp}"], "is not a finished data folder"),
        (
            ["{config}", "--model", "{base}", "--file", "{chats}", "--split-by", "topic"],
            "has no field 'topic' to split by",
        ),
        (
            ["{config}", "--model", "{base}", "--file", "{chats}", "--set", "data.seq_len=4"],
            "longer than 5 tokens",
        ),
        (["--resume", "--model", "{base}"], "give only --out"),
        (
            ["{config}", "--model", "{base}", "--file", "{chats}", "--epochs", "-1"],
            "epochs is -1",
        ),
    ],
)
def test_what_cannot_be_used_is_named(
    words: list[str],
    message: str,
    base: Path,
    chats: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "sft.toml"
    given = [w.format(config=config, base=base, chats=chats, tmp=tmp_path) for w in words]
    code, _, told = run(capsys, *given, "--out", tmp_path / "run")
    assert code == 2, told
    assert message in told
    assert not (tmp_path / "run/manifest.json").exists()


def test_epochs_are_checked_before_the_data_is_made(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["--model", base, "--file", chats, "--epochs", 0, "--out", out]
    code, _, told = run(capsys, tmp_path / "sft.toml", *given)
    assert code == 2 and "epochs is 0" in told
    assert not out.exists()
