"""What a run takes over from the model that it starts from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import Tokenizer
from gemmule.train.initial_model import run_tokenizer
from models import random_model, tiny_config


def test_a_run_keeps_the_chat_format_of_its_model(pieces: Tokenizer, tmp_path: Path) -> None:
    own = pieces.with_chat_format("{{ messages[0].content }}", (107,), {"tool_use": "x"})
    save_model(random_model(tiny_config(vocab_size=pieces.vocab_size)), own, tmp_path / "model")
    dataset: Any = SimpleNamespace(tokenizer=pieces)
    config: Any = SimpleNamespace(model=SimpleNamespace(init=str(tmp_path / "model")))
    kept = run_tokenizer(config, dataset)
    assert kept.fingerprint == pieces.fingerprint
    assert kept.chat_format == own.chat_format
    assert kept.named_templates == {"tool_use": "x"}
    config.model.init = None
    assert run_tokenizer(config, dataset) is pieces
