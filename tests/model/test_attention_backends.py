"""The attention seam: backends agree, and a new one needs no change to the model."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from gemmule.model import gemma
from gemmule.model.attention import AttentionBackend, AttentionLayer, plain_attention
from gemmule.model.block_attention import block_attention
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.kv_cache import KVCache

V, T = 61, 96


@pytest.fixture(scope="module")
def model() -> Gemma:
    """A window shorter than the text, and caps that bite."""
    config = GemmaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24,
        sliding_window=20, max_position_embeddings=128, attn_logit_softcapping=3.0,
    )  # fmt: skip
    made = Gemma(config)
    made.init_weights(torch.Generator().manual_seed(5))
    return made


@pytest.fixture(scope="module")
def tokens_BT() -> Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))


def flex(
    layer: AttentionLayer, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, doc_ids_BT: Tensor | None
) -> Tensor:
    """A FlexAttention backend, as a user may write it."""

    def cap(score: Tensor, *_: Tensor) -> Tensor:
        return score if layer.cap is None else torch.tanh(score / layer.cap) * layer.cap

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        allowed = q >= k
        if layer.window is not None:
            allowed = allowed & (q - k < layer.window)
        return allowed if doc_ids_BT is None else allowed & (doc_ids_BT[b, q] == doc_ids_BT[b, k])

    B, length, _, _ = q_BTNH.shape
    block_mask = create_block_mask(mask, B, None, length, length, device=str(q_BTNH.device))
    q, k, v = (x.transpose(1, 2) for x in (q_BTNH, k_BTKH, v_BTKH))
    attend: Callable[..., Any] = flex_attention
    out = attend(q, k, v, score_mod=cap, block_mask=block_mask, scale=layer.scale, enable_gqa=True)
    return Tensor(out).transpose(1, 2)


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", [block_attention, flex])
def test_backends_are_the_plain_one(
    model: Gemma, tokens_BT: Tensor, backend: AttentionBackend, packed: bool
) -> None:
    doc_ids = torch.tensor([[1] * 30 + [2] * 50 + [0] * 16, [1] * 96]) if packed else None
    plain = model(tokens_BT, doc_ids_BT=doc_ids, attend=plain_attention)
    assert (model(tokens_BT, doc_ids_BT=doc_ids, attend=backend) - plain).abs().max() < 1e-4
    assert plain.std() > 0.3
    wrong = model(tokens_BT, doc_ids_BT=torch.arange(T) // 20 + torch.zeros_like(tokens_BT))
    assert (wrong - plain).abs().max() > 1e-2  # the comparison can fail


@torch.inference_mode()
@pytest.mark.parametrize("chunks", [[96], [1] * 96, [40, 1, 1, 33, 21], [32, 32, 32]])
def test_a_cache_is_the_whole_sequence(model: Gemma, tokens_BT: Tensor, chunks: list[int]) -> None:
    plain = model(tokens_BT, attend=plain_attention)
    cache = KVCache.new(model.config, 2, T)
    parts = [model(part, cache=cache) for part in tokens_BT.split(chunks, dim=1)]
    assert (torch.cat(parts, dim=1) - plain).abs().max() < 1e-4
    assert cache.length == T
    with pytest.raises(ValueError, match="97 tokens do not fit in a cache of 96"):
        model(tokens_BT[:, :1], cache=cache)


def test_a_backend_sees_each_layer_once(model: Gemma, tokens_BT: Tensor) -> None:
    seen = []

    def spy(layer: AttentionLayer, *args: Any) -> Tensor:
        seen.append((layer.layer, layer.window, layer.cap))
        return plain_attention(layer, *args)

    model(tokens_BT, attend=spy)
    assert seen == [(0, 20, 3.0), (1, None, 3.0), (2, 20, 3.0), (3, None, 3.0)]


def test_the_model_file_stays_one_screenful() -> None:
    source = inspect.getsource(gemma)
    assert source.count("\n") < 400
    for word in ("quant", "parallel", "fsdp", "distribut"):
        assert word not in source.lower()
