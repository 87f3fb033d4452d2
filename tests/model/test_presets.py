"""Presets against the published configurations (report, table 1 and 2; HF's config.json)."""

from typing import Any

import pytest
import torch

from gemmule.errors import ConfigError
from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.gemma import Gemma

COMMON = {
    "vocab_size": 256_000,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
}
FIELDS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "query_pre_attn_scalar",
)  # fmt: skip
PUBLISHED = {
    "2b": (26, 2304, 9216, 8, 4, 256, 256),
    "9b": (42, 3584, 14336, 16, 8, 256, 256),
    "27b": (46, 4608, 36864, 32, 16, 128, 144),
}
NON_EMBEDDING = {"2b": 2_024_517_888, "9b": 8_324_201_984, "27b": 26_047_480_320}
EMBEDDING = {"2b": 589_824_000, "9b": 917_504_000, "27b": 1_179_648_000}
REPORTED_EMBEDDING = {"2b": 590_118_912, "9b": 917_962_752, "27b": 1_180_237_824}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_fields(name: str) -> None:
    expected: dict[str, Any] = {**COMMON, **dict(zip(FIELDS, PUBLISHED[name], strict=True))}
    assert preset(name).model_dump() == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    config = preset(name)
    assert config.non_embedding_parameters == NON_EMBEDDING[name]
    assert config.parameters == NON_EMBEDDING[name] + EMBEDDING[name]
    # The report counts the 256128 rows of the JAX checkpoints.
    wider = preset(name, vocab_size=256_128)
    assert wider.parameters - wider.non_embedding_parameters == REPORTED_EMBEDDING[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_scores_are_scaled_as_published(name: str) -> None:
    by = {"2b": 256, "9b": 256, "27b": 4608 // 32}[name]
    assert preset(name).attention_scale == by**-0.5


@pytest.mark.parametrize("name", PRESETS)
def test_the_model_has_the_size_the_config_says(name: str) -> None:
    config = preset(name, vocab_size=256_000)
    with torch.device("meta"):
        model = Gemma(config)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert sum(sizes.values()) == config.parameters
    assert sum(sizes.values()) - sizes["embed_tokens.weight"] == config.non_embedding_parameters


@pytest.mark.parametrize("name", [n for n in PRESETS if n not in PUBLISHED])
def test_small_ones_keep_the_proportions(name: str) -> None:
    config = preset(name, vocab_size=4096)
    named = {"m": 1e6, "b": 1e9}[name[-1]] * float(name[:-1])
    assert 0.65 * named < config.non_embedding_parameters < 1.35 * named
    assert config.num_attention_heads == 2 * config.num_key_value_heads
    assert config.num_hidden_layers % 2 == 0  # as many local as global layers
    assert config.intermediate_size == 4 * config.hidden_size
    assert config.sliding_window < config.max_position_embeddings
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)


def test_shapes_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Gemma(preset("27b"))
        logits = model(torch.zeros(2, 16, dtype=torch.long))
    assert logits.shape == (2, 16, 256_000)
    layer = model.layers[3]
    assert layer.self_attn.q_proj.weight.shape == (32 * 128, 4608)
    assert layer.self_attn.o_proj.weight.shape == (4608, 32 * 128)
    assert layer.self_attn.k_proj.weight.shape == (16 * 128, 4608)
    assert [x.self_attn.window for x in model.layers][:4] == [4096, None, 4096, None]


def test_flops_against_a_count_of_every_product() -> None:
    config = preset("1m", vocab_size=512, sliding_window=6)
    T, per_token = 20, 0.0
    d, f, h, n, k = 128, 512, 32, 4, 2
    for query in range(T):
        for layer in range(4):
            keys = min(query + 1, 6) if layer % 2 == 0 else query + 1
            per_token += 2 * (d * n * h + 2 * d * k * h + n * h * d + 3 * d * f)
            per_token += 2 * 2 * keys * n * h
        per_token += 2 * 512 * d
    assert config.forward_flops_per_token(T) == pytest.approx(per_token / T, rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 3}, "preset 1m: unknown key 'hiden_size'; did you mean 'hidden_size'"),
        ({"num_attention_heads": 3}, "num_attention_heads 3 is not a multiple of num_key_value_"),
        ({"head_dim": 5}, "head_dim = 5"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"attn_logit_softcapping": -1.0}, "attn_logit_softcapping = -1.0"),
        ({"final_logit_softcapping": float("nan")}, "final_logit_softcapping = nan"),
        ({"rope_theta": float("inf")}, "rope_theta = inf"),
    ],
)
def test_wrong_fields(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preset("1m", **{"vocab_size": 512, **changes})
    assert message in str(caught.value)


def test_unknown_presets() -> None:
    with pytest.raises(ConfigError, match=r"unknown model preset '2B'.*'2b'"):
        preset("2B")
    with pytest.raises(ConfigError, match="'vocab_size' is required"):
        preset("1m")
    assert isinstance(preset("2b", sliding_window=10), GemmaConfig)
