"""Evaluations of tuned models: the chat format, and the data that such a run was trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopping_models import stopping_model

from gemmule import files
from gemmule.checkpoints.hf.writer import save_model
from gemmule.evals.training_data import open_training_data
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.chat_data import write_conversations
from gemmule.posttrain.conversations import Conversation, Message
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tuned(pieces: Tokenizer, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of supervised fine-tuning."""
    folder = tmp_path_factory.mktemp("tuned")
    save_model(stopping_model(pieces.vocab_size, 3), pieces, folder / "base")
    items = [
        Conversation((Message("user", f"sail {n}?"), Message("assistant", "red wind")))
        for n in range(40)
    ]
    data = write_conversations(items, pieces, folder / "chat").dataset
    settings = tiny(
        steps=2,
        model={"init": str(folder / "base")},
        objective={"kind": "sft"},
        data={"path": str(data.path), "seq_len": 64},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(settings), folder / "runs/sft")
    return folder / "runs/sft"


def test_the_data_of_a_tuned_run_is_found_by_its_settings(tuned: Path) -> None:
    training = open_training_data(tuned)
    assert training.dataset.path == tuned.parent.parent / "chat"
    assert training.reading is None  # whole conversations, packed: not the sequences of a text
    assert "settings of another kind" in training.notes[0]


def test_the_settings_name_the_data_also_where_the_kind_is_not_known(tuned: Path) -> None:
    settings = tuned / "config.toml"
    text = files.read_text(settings)
    files.write_text(settings, text.replace('kind = "sft"', 'kind = "of another package"'))
    try:
        assert open_training_data(tuned).dataset.name == "conversations"
    finally:
        files.write_text(settings, text)
