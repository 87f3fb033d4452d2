"""A small random model with a tokenizer, saved."""

import textwrap
from pathlib import Path

import pytest

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from models import random_model


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(textwrap.__file__).read_text()], 512)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """The model in HF's layout."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(random_model(), tokenizer, folder)
    return folder
