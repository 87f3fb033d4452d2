"""Commands on the folder of a run that trained an adapter."""

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gemmule
import gemmule.posttrain.kinds
from gemmule.cli.app import app
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import write_conversations
from gemmule.posttrain.conversations import Conversation, Message
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from models import TINY
from words import WORDS


@pytest.fixture(scope="module")
def run(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SFT with an adapter, which starts from a random model."""
    folder, pick = tmp_path_factory.mktemp("adapter"), random.Random(1)
    conversations = [
        Conversation((Message("user", f"say {word} {i}"), Message("assistant", pick.choice(WORDS))))
        for i in range(30)
        for word in ("the sea", "a ship", "captain")
    ]
    data = write_conversations(conversations, pieces, folder / "data").dataset
    common = {
        "data": {"path": str(data.path), "seq_len": 48, "batch_size": 8},
        "objective": {"kind": "sft"},
        "runtime": {"compile": False, "threads": 1, "dtype": "float32"},
    }
    start = {"steps": 1, "model": dict(TINY)}
    tuned = {
        "steps": 3,
        "model": {"init": str(folder / "start")},
        "adapter": {"rank": 4},
        "optimizer": {"name": "adamw", "learning_rate": 0.01},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse({**common, **start}), folder / "start")
        run_training(RunConfig.parse({**common, **tuned}), folder / "tuned")
    return folder / "tuned"


def output(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_info_names_the_adapter_and_its_base(run: Path) -> None:
    lines = " ".join(output("info", run).split())
    assert "LoRA" in lines
    assert "rank 4" in lines


def test_it_chats(run: Path) -> None:
    messages = [{"role": "user", "content": "say the sea"}]
    lm = gemmule.load(run)
    assert isinstance(lm.chat(messages, temperature=0, max_new_tokens=4), str)
    assert lm.tokenizer.stop_ids == gemmule.load(run.parent / "start").tokenizer.stop_ids


def test_convert_writes_the_merged_model(run: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    output("convert", run, merged, "--to", "hf", "--no-verify")
    assert json.loads((merged / "config.json").read_text())["model_type"] == "gemma2"
    options = ("the sea", "--temperature", "0", "--max-new-tokens", "8")
    assert output("generate", merged, *options) == output("generate", run, *options)
