"""Tiny models with random weights whose answers end by themselves after some tokens."""

from collections.abc import Mapping
from typing import Any

import torch

from gemmule.model.gemma import Gemma
from gemmule.model.spm_train import END_OF_TURN_ID
from models import GROUPED, random_model, tiny_config


def stopping_model(
    vocab_size: int, seed: int, *, logit: float = 4.0, changes: Mapping[str, Any] | None = None
) -> Gemma:
    """A model that gives <end_of_turn> about the same logit everywhere.

    Args:
        vocab_size: rows of the embedding.
        seed: seed of the weights.
        logit: mean logit of <end_of_turn>.
        changes: fields of the shape that differ from GROUPED.
    """
    shape = {"max_position_embeddings": 96, **(changes or {})}
    model = random_model(
        tiny_config(GROUPED, vocab_size=vocab_size, **shape),
        seed,
        std={"post_": 0.5, "": 0.4},
        mean={"post_": 3.0, "norm": 1.0},
    ).eval()
    tokens = torch.randint(4, vocab_size, (16, 32), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        mean_D = model.hidden_states(tokens).flatten(0, 1).mean(0)
        model.embed_tokens.weight[END_OF_TURN_ID] = logit * mean_D / mean_D.square().sum()
    return model
