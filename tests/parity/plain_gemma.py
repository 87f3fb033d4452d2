"""Gemma 2 once more, straight from the report's formulas, in float64: the truth to measure from.

It shares no code with src/. Shapes as in gemmule/model/gemma.py.
"""

import torch
from torch import Tensor

from gemmule.model.config import GemmaConfig


def exact_logits(weights: dict[str, Tensor], config: GemmaConfig, tokens_BT: Tensor) -> Tensor:
    """Logits [B, T, V] in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    T = tokens_BT.shape[1]
    H, G = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    position_T = torch.arange(T)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * (1 + w[name])

    def cap(x: Tensor, c: float | None) -> Tensor:
        return x if c is None else c * (x / c).tanh()

    def rotate(x_BTNH: Tensor) -> Tensor:
        # Each pair (i, i + H/2) is one complex number, turned by its angle.
        pair = torch.complex(*x_BTNH.chunk(2, -1))
        speeds = config.rope_theta ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)
        angle = position_T[:, None, None] * speeds
        turned = pair * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), -1)

    ago = position_T[:, None] - position_T
    x = w["embed_tokens.weight"][tokens_BT] * config.hidden_size**0.5
    for i in range(config.num_hidden_layers):
        layer = f"layers.{i}."

        def project(x: Tensor, name: str, layer: str = layer) -> Tensor:
            return x @ w[f"{layer}{name}.weight"].T

        a = norm(x, layer + "input_layernorm.weight")
        q, k, v = (
            project(a, f"self_attn.{n}_proj").unflatten(-1, (-1, H)) for n in ("q", "k", "v")
        )
        k, v = rotate(k).repeat_interleave(G, 2), v.repeat_interleave(G, 2)
        scores = torch.einsum("btnh,bsnh->bnts", rotate(q), k)
        scores = scores / (config.query_pre_attn_scalar or H) ** 0.5
        seen = (ago >= 0) & (ago < config.sliding_window) if i % 2 == 0 else ago >= 0
        scores = cap(scores, config.attn_logit_softcapping)
        shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out = torch.einsum("bnts,bsnh->btnh", shares, v).flatten(2)
        x = x + norm(project(out, "self_attn.o_proj"), layer + "post_attention_layernorm.weight")
        m = norm(x, layer + "pre_feedforward_layernorm.weight")
        gate = project(m, "mlp.gate_proj")
        gate = gate / 2 * (1 + ((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)).tanh())
        fed = project(gate * project(m, "mlp.up_proj"), "mlp.down_proj")
        x = x + norm(fed, layer + "post_feedforward_layernorm.weight")
    return cap(norm(x, "norm.weight") @ w["embed_tokens.weight"].T, config.final_logit_softcapping)
