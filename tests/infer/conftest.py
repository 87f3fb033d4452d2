"""A small random model whose window is shorter than the texts tested, and its tokenizer."""

import textwrap
from pathlib import Path

import pytest
import torch

from gemmule.infer.language_model import LanguageModel
from gemmule.model.tokenizer import Tokenizer, train_tokenizer
from models import GROUPED, random_model, tiny_config


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(textwrap.__file__).read_text()], 540)


@pytest.fixture(scope="session")
def lm(tokenizer: Tokenizer) -> LanguageModel:
    # Four more rows than tokens.
    config = tiny_config(GROUPED, vocab_size=544, max_position_embeddings=96)
    # Strong layers over a weak embedding: otherwise every token predicts itself.
    model = random_model(config, 3, std={"post_": 0.5, "": 0.4}, mean={"post_": 3.0})
    with torch.no_grad():
        # Rows without a token would nearly always win if they were allowed to.
        model.embed_tokens.weight[540:] *= 10
    return LanguageModel(model, tokenizer)
