"""A small model with weights large enough that caps, windows and norms all matter."""

import torch

from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma

CONFIG = GemmaConfig(
    vocab_size=520,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    query_pre_attn_scalar=24,
    sliding_window=6,
    max_position_embeddings=64,
    rope_theta=5000.0,
    rms_norm_eps=1e-5,
    attn_logit_softcapping=20.0,
    final_logit_softcapping=15.0,
)


def random_model(config: GemmaConfig = CONFIG, seed: int = 0) -> Gemma:
    model = Gemma(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 0.3 if "norm" in name else 1.0 if "embed" in name else 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * std)
    return model


TOKENS = torch.randint(0, 512, (2, 20), generator=torch.Generator().manual_seed(1))
