"""Our forward pass against the PyPI package `gemma` (JAX), which shares nothing with transformers.

Its own classes of the three published sizes are shrunk by replacing dimensions only: caps, query
scale, order of local and global layers, and the layout of the gating weights stay theirs.

Needs the extra `gemma` in an environment of its own; run with: pytest -m slow
tests/parity/test_jax.py
"""

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pairs import TOLERANCE, cached, padding, pair, shrunken, tokens, weights
from plain_gemma import exact_logits
from torch import Tensor

from gemmule.model.config import GemmaConfig, preset
from gemmule.model.gemma import Gemma
from parity_figures import Figures

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what they import is not ours to mend
    gm = pytest.importorskip("gemma.gm")
    import jax
    import jax.numpy as jnp

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CLASSES = {"2b": "Gemma2_2B", "9b": "Gemma2_9B", "27b": "Gemma2_27B"}
COUNTS = {  # the report's: without and of the embedding
    "2b": (2_024_517_888, 590_118_912),
    "9b": (8_324_201_984, 917_962_752),
    "27b": (26_047_480_320, 1_180_237_824),
}


def their_module(name: str, config: GemmaConfig) -> Any:
    published = getattr(gm.nn, CLASSES[name])
    small = dataclasses.replace(
        published.config,
        num_embed=config.vocab_size,
        embed_dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        sliding_window_size=config.sliding_window,
        attention_types=published.config.attention_types[: config.num_hidden_layers],
    )
    return published(config=small, dtype=jnp.float32)


def their_params(ours: Gemma, transposed_gating: bool) -> dict[str, Any]:
    """Our weights in their tree; nn.Linear keeps [out, in], they keep heads apart."""
    H = ours.config.head_dim

    def heads_DH(w_out_D: Tensor) -> Tensor:
        return w_out_D.unflatten(0, (-1, H)).mT  # [heads, D, H]

    def scale(norm: torch.nn.Module) -> dict[str, Tensor]:
        return {"scale": norm.weight}

    tree: dict[str, Any] = {
        "embedder": {"input_embedding": ours.embed_tokens.weight},
        "final_norm": scale(ours.norm),
    }
    for i, layer in enumerate(ours.layers):
        attn, mlp = layer.self_attn, layer.mlp
        gating_2FD = torch.stack((mlp.gate_proj.weight, mlp.up_proj.weight))
        kv_2KDH = torch.stack((heads_DH(attn.k_proj.weight), heads_DH(attn.v_proj.weight)))
        tree[f"layer_{i}"] = {
            "attn": {
                "q_einsum": {"w": heads_DH(attn.q_proj.weight)},
                "kv_einsum": {"w": kv_2KDH},
                "attn_vec_einsum": {"w": attn.o_proj.weight.T.unflatten(0, (-1, H))},
            },
            "mlp": {
                "gating_einsum": gating_2FD if transposed_gating else gating_2FD.mT,
                "linear": mlp.down_proj.weight.T,
            },
            "pre_attention_norm": scale(layer.input_layernorm),
            "post_attention_norm": scale(layer.post_attention_layernorm),
            "pre_ffw_norm": scale(layer.pre_feedforward_layernorm),
            "post_ffw_norm": scale(layer.post_feedforward_layernorm),
        }
    return jax.tree.map(lambda p: jnp.asarray(p.detach().contiguous().numpy()), tree)


class Reference:
    """Their module with our weights; takes and returns torch tensors."""

    def __init__(self, name: str, ours: Gemma) -> None:
        self.module = their_module(name, ours.config)
        transposed = self.module.config.transpose_gating_einsum
        self.params = {"params": their_params(ours, transposed)}

    def __call__(self, ids: Tensor, positions: Tensor, mask_BTS: Tensor, cache: Any = None) -> Any:
        out = self.module.apply(
            self.params,
            jnp.asarray(ids.numpy().astype(np.int32)),
            positions=jnp.asarray(positions.numpy().astype(np.int32)),
            attention_mask=jnp.asarray(mask_BTS.numpy()),
            cache=cache,
        )
        return torch.tensor(np.asarray(out.logits)), out.cache


@pytest.mark.parametrize("name", CLASSES)
@torch.no_grad()
def test_prefill_padding_and_decode(name: str, figures: Figures) -> None:
    ours, transformers_model = pair(shrunken(name), seed=8)
    reference = Reference(name, ours)
    ids = tokens(ours.config, 3, 40)
    causal = torch.ones(40, 40, dtype=torch.bool).tril()

    places = torch.arange(40).expand(3, 40)
    expected, _ = reference(ids, places, causal.expand(3, 40, 40))
    figures.compare("gemma (JAX), prefill", ours(ids), expected, TOLERANCE)
    exact = exact_logits(weights(transformers_model), ours.config, ids)
    for who, logits in (("our", ours(ids)), ("their", expected)):
        figures.note(f"gemma (JAX), {who} error from float64", (logits - exact).abs().max().item())

    for side in ("left", "right"):
        mask, positions = padding([40, 25, 7], 40, side)
        real = mask.bool()
        expected, _ = reference(ids, positions, causal & real[:, None, :])
        got = ours(ids, positions_BT=positions, doc_ids_BT=mask)
        figures.compare(f"gemma (JAX), padded {side}", got[real], expected[real], TOLERANCE)

    # Their cached decoding against ours: a prompt longer than the window, then token by token.
    cache = reference.module.init_cache(batch_size=3, dtype=jnp.float32, cache_length=40)
    parts, at = [], 0
    chunks = [15] + [1] * 25
    for n in chunks:
        now = slice(at, at + n)
        logits, cache = reference(ids[:, now], places[:, now], causal[now].expand(3, n, 40), cache)
        parts.append(logits)
        at += n
    figures.compare(
        "gemma (JAX), decode", cached(ours, ids, chunks), torch.cat(parts, 1), TOLERANCE
    )


@pytest.mark.parametrize("name", CLASSES)
def test_their_full_sizes_have_our_parameters(name: str) -> None:
    module = getattr(gm.nn, CLASSES[name])()
    tree = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    total = sum(leaf.size for leaf in jax.tree.leaves(tree))
    embedding = tree["embedder"]["input_embedding"].size
    assert (total - embedding, embedding) == COUNTS[name]
    config = preset(name, vocab_size=256_128)
    assert config.parameters == total
    with torch.device("meta"):
        ours = Gemma(config)
    assert sum(p.numel() for p in ours.parameters()) == total
