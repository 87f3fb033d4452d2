"""Our forward pass against transformers' Gemma2ForCausalLM (eager attention, fp32)."""

import pytest
import torch
import transformers

from gemmule.model.config import PRESETS, GemmaConfig, preset
from gemmule.model.gemma import Gemma
from gemmule.model.kv_cache import KVCache

TOLERANCE = 3e-5
SHRUNKEN = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "query_pre_attn_scalar": 12,
    "sliding_window": 9,
}
HEADS = {name: (p["num_attention_heads"], p["num_key_value_heads"]) for name, p in PRESETS.items()}


def shrunken(name: str) -> GemmaConfig:
    """A preset made small; window < sequence and scalar != head_dim, so that both matter."""
    n, k = HEADS[name]
    heads = {"num_attention_heads": min(n, 8), "num_key_value_heads": min(n, 8) * k // n}
    return preset(name, **SHRUNKEN, **heads)


def pair(config: GemmaConfig, seed: int) -> tuple[Gemma, transformers.Gemma2ForCausalLM]:
    """The same large random weights in our model and in theirs."""
    torch.manual_seed(seed)
    theirs = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **config.model_dump(),
            hidden_activation="gelu_pytorch_tanh",
            attn_implementation="eager",
            initializer_range=1.0,
        )
    ).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "norm" in name:  # transformers starts norms at zero: (1 + w) would go untested
                p.normal_(0, 0.3)
    ours = Gemma(config).eval()
    state = {k.removeprefix("model."): v for k, v in theirs.state_dict().items()}
    state.pop("lm_head.weight", None)
    ours.load_state_dict(state)
    return ours, theirs


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, SHRUNKEN["vocab_size"], (rows, length), generator=g)


@pytest.mark.parametrize("name", ["1m", "30m", "2b", "9b", "27b"])
@torch.no_grad()
def test_prefill_logits_equal(name: str) -> None:
    ours, theirs = pair(shrunken(name), seed=1)
    ids = tokens(2, 40)
    expected = theirs(ids).logits
    assert expected.abs().max() > 20, "the final cap of 30 does not bite"
    assert (ours(ids) - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_caps_window_and_scale_each_matter() -> None:
    """If any of them were ignored, the test above would notice."""
    base = shrunken("2b")
    ours, _ = pair(base, seed=2)
    ids = tokens(1, 40)
    expected = ours(ids)
    for change in (
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"sliding_window": 64},
        {"query_pre_attn_scalar": 16},
        {"rope_theta": 1000.0},
    ):
        other = Gemma(base.model_copy(update=change))
        other.load_state_dict(ours.state_dict())
        assert (other(ids) - expected).abs().max() > 100 * TOLERANCE, change


@torch.no_grad()
def test_cached_decode_past_the_window() -> None:
    ours, theirs = pair(shrunken("2b"), seed=3)
    ids = tokens(2, 48)
    expected = theirs(ids).logits
    for chunks in ([20] + [1] * 28, [1] * 48, [5, 13, 1, 1, 17, 11], [48]):
        cache = KVCache(ours.config, 2, 48)
        parts, at = [], 0
        for n in chunks:
            parts.append(ours(ids[:, at : at + n], cache=cache))
            at += n
        assert (torch.cat(parts, 1) - expected).abs().max() <= TOLERANCE, chunks


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_batches(side: str) -> None:
    ours, theirs = pair(shrunken("2b"), seed=4)
    ids = tokens(3, 32)
    mask = torch.ones_like(ids)
    for row, length in enumerate((32, 20, 7)):
        pads = slice(0, 32 - length) if side == "left" else slice(length, 32)
        mask[row, pads] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    got = ours(ids, positions_BT=positions, segments_BT=mask)
    real = mask.bool()
    assert (got - expected)[real].abs().max() <= TOLERANCE
    cache = KVCache(ours.config, 3, 32)
    first = ours(ids[:, :16], positions_BT=positions[:, :16], segments_BT=mask[:, :16], cache=cache)
    rest = [
        ours(
            ids[:, i : i + 1],
            positions_BT=positions[:, i : i + 1],
            segments_BT=mask[:, i : i + 1],
            cache=cache,
        )
        for i in range(16, 32)
    ]
    assert (torch.cat([first, *rest], 1) - expected)[real].abs().max() <= TOLERANCE


def test_gradients_equal() -> None:
    ours, theirs = pair(shrunken("9b"), seed=5)
    ids = tokens(2, 40)
    theirs(ids, labels=ids).loss.backward()
    logits = ours(ids)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    expected = {k.removeprefix("model."): p.grad for k, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert p.grad is not None
        error = (p.grad - expected[name]).norm() / expected[name].norm()
        assert error <= 1e-4, f"{name}: relative error {error:.1e}"
