"""Our forward pass against transformers' Gemma2ForCausalLM: the presets, made small, in fp32."""

import pytest
import torch
from pairs import TOLERANCE, cached, padding, pair, shrunken, tokens, without

from gemmule.model.config import PRESETS
from parity_figures import Figures


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_prefill_logits_equal(name: str, figures: Figures) -> None:
    ours, theirs = pair(shrunken(name), seed=1)
    ids = tokens(ours.config, 2, 40)
    expected = theirs(ids).logits
    figures.compare("presets, prefill", ours(ids), expected, TOLERANCE)


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_caps_window_and_scale_each_matter(name: str) -> None:
    """If any of them were ignored, the test above would notice."""
    ours, _ = pair(shrunken(name), seed=1)
    ids = tokens(ours.config, 2, 40)
    expected = ours(ids)
    for change in (
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"sliding_window": 40},
        {"query_pre_attn_scalar": ours.config.query_pre_attn_scalar + 1},
        {"rope_theta": 9000.0},
        {"rms_norm_eps": 1e-3},
    ):
        assert (without(ours, **change)(ids) - expected).abs().max() > 100 * TOLERANCE, change


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_cached_decode_past_the_window(name: str, figures: Figures) -> None:
    ours, theirs = pair(shrunken(name), seed=3)
    ids = tokens(ours.config, 2, 48)
    expected = theirs(ids).logits
    for chunks in ([20] + [1] * 28, [1] * 48, [5, 13, 1, 1, 17, 11], [48]):
        figures.compare("presets, decode", cached(ours, ids, chunks), expected, TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_padded_batches(name: str, side: str, figures: Figures) -> None:
    ours, theirs = pair(shrunken(name), seed=4)
    ids = tokens(ours.config, 3, 32)
    mask, positions = padding([32, 20, 7], 32, side)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    got = ours(ids, positions_BT=positions, doc_ids_BT=mask)
    decoded = cached(ours, ids, [16] + [1] * 16, positions, mask)
    real = mask.bool()
    for logits in (got, decoded):
        figures.compare(f"presets, padded {side}", logits[real], expected[real], TOLERANCE)


def test_gradients_equal(figures: Figures) -> None:
    ours, theirs = pair(shrunken("9b"), seed=5)
    ids = tokens(ours.config, 2, 40)
    theirs(ids, labels=ids).loss.backward()
    logits = ours(ids)[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    expected = {k.removeprefix("model."): p.grad for k, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert p.grad is not None
        error = ((p.grad - expected[name]).norm() / expected[name].norm()).item()
        figures.note("presets, gradients (relative)", error, 1e-4)
        assert error <= 1e-4, f"{name}: relative error {error:.1e}"
