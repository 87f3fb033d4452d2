"""A small random model whose window is shorter than the texts tested, and its tokenizer."""

import textwrap
from pathlib import Path

import pytest
import torch

from gemmule.infer.language_model import LanguageModel
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(textwrap.__file__).read_text()], 540)


@pytest.fixture(scope="session")
def lm(tokenizer: Tokenizer) -> LanguageModel:
    config = GemmaConfig(
        vocab_size=544,  # four rows more than tokens
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=7,
        max_position_embeddings=96,
    )
    model = Gemma(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            # Strong layers over a weak embedding: otherwise every token predicts itself.
            mean, std = (3.0, 0.5) if "post_" in name else (0.0, 0.4)
            p.copy_(torch.randn(p.shape, generator=generator) * std + mean)
        # Rows without a token would nearly always win if they were allowed to.
        model.embed_tokens.weight[540:] *= 10
    return LanguageModel(model, tokenizer)
