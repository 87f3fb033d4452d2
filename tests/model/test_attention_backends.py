"""The attention seam: backends agree, and a new one needs no change to the model."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from gemmule.model import gemma
from gemmule.model.attention import AttentionBackend, AttentionLayer, plain_attention
from gemmule.model.block_attention import block_attention
from gemmule.model.config import GemmaConfig
from gemmule.model.flex_attention import FlexAttention
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


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("backend", [block_attention, FlexAttention(compiled=False)])
def test_backends_are_the_plain_one(
    model: Gemma, tokens_BT: Tensor, backend: AttentionBackend, packed: bool
) -> None:
    doc_ids = torch.tensor([[1] * 30 + [2] * 50 + [0] * 16, [1] * 96]) if packed else None
    plain = model(tokens_BT, doc_ids_BT=doc_ids, attend=plain_attention)
    assert (model(tokens_BT, doc_ids_BT=doc_ids, attend=backend) - plain).abs().max() < 1e-4
    assert plain.std() > 0.3
    wrong = model(tokens_BT, doc_ids_BT=torch.arange(T) // 20 + torch.zeros_like(tokens_BT))
    assert (wrong - plain).abs().max() > 1e-2  # the comparison can fail


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, as it traces
@pytest.mark.parametrize("packed", [False, True])
def test_flex_attention_has_the_plain_gradients(
    model: Gemma, tokens_BT: Tensor, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch refuses a CPU, for which it has no kernel; its plain formulas are there all the same.
    check = "torch.nn.attention.flex_attention._validate_device"
    monkeypatch.setattr(check, lambda *_: None)
    doc_ids = torch.tensor([[1] * 30 + [2] * 66, [1] * 96]) if packed else None
    gradients = []
    for attend in (plain_attention, FlexAttention(compiled=False)):
        logits = model(tokens_BT, doc_ids_BT=doc_ids, attend=attend)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens_BT.flatten())
        gradients.append(torch.autograd.grad(loss, [*model.parameters()]))
    for plain, flex in zip(*gradients, strict=True):
        assert (plain - flex).abs().max() < 1e-5 + 1e-4 * plain.abs().max()


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_follows_a_change_of_documents(model: Gemma, tokens_BT: Tensor) -> None:
    """Masks are kept for the layers of one pass, and not for the next."""
    backend = FlexAttention(compiled=False)
    for cut in (30, 60):
        doc_ids = (torch.arange(T) >= cut).long().expand(2, T)
        plain = model(tokens_BT, doc_ids_BT=doc_ids, attend=plain_attention)
        assert (model(tokens_BT, doc_ids_BT=doc_ids, attend=backend) - plain).abs().max() < 1e-4


@torch.inference_mode()
def test_a_model_has_a_backend_of_its_own(model: Gemma, tokens_BT: Tensor) -> None:
    calls: list[int] = []

    def spy(layer: AttentionLayer, *args: Any) -> Tensor:
        calls.append(layer.layer)
        return block_attention(layer, *args)

    before, model.attend = model.attend, spy
    try:
        model(tokens_BT)
    finally:
        model.attend = before
    assert calls == [0, 1, 2, 3]
    assert before is block_attention


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
