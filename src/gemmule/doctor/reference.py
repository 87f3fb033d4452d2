"""A second, plain Gemma 2 forward pass, and its variants with the bugs of ports.

It shares no code with model/gemma.py: one row of tokens, no cache, no blocks, whole masks. The
same code computes what a port with a bug computes, under a `Variant`. Several variants share one
pass over the layers, so that a large model's weights are converted once.

Shapes: T tokens, D model, N query heads, K kv heads, H head dim, F ffn hidden, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gemmule.model.config import GemmaConfig

Weights = Mapping[str, Tensor]
_VOCABULARY_BLOCK = 8192  # rows of the embedding converted at a time


@dataclasses.dataclass(frozen=True)
class Variant:
    """Gemma 2 by default; each field is one deviation from it.

    Attributes:
        attention_cap: "on", "off", "after the mask" (masked scores become -cap) or
            "final's" (the two caps swapped, with final_cap "attention's").
        final_cap: "on", "off" or "attention's".
        window: keys added to the sliding window; None: no window.
        exchanged: whether odd layers are local instead of even ones.
        causal: if False, every token attends to every other.
        query_scalar: scores are scaled by its inverse square root; None: the config's.
        gelu: "tanh" or "erf".
        norm_offset: norms multiply by norm_offset + w.
        post_norms: if False, the norms after attention and MLP are missing.
        position_dtype: dtype that positions are rounded to before the angles are computed.
        pairs: "halves" (i, i + H/2) or "neighbors" (2i, 2i + 1) rotate together.
        grouping: "blocks" (query head n reads kv head n // G) or "modulo" (n % K).
        embedding_scale: "rounded" to the activations' dtype, "exact" or "off".
    """

    attention_cap: str = "on"
    final_cap: str = "on"
    window: int | None = 0
    exchanged: bool = False
    causal: bool = True
    query_scalar: float | None = None
    gelu: str = "tanh"
    norm_offset: float = 1.0
    post_norms: bool = True
    position_dtype: torch.dtype = torch.int64
    pairs: str = "halves"
    grouping: str = "blocks"
    embedding_scale: str = "rounded"

    def plus(self, other: "Variant") -> "Variant":
        """Both deviations at once; if both set a field, the other's value counts."""
        changes = {
            field.name: getattr(other, field.name)
            for field in dataclasses.fields(Variant)
            if getattr(other, field.name) != field.default
        }
        return dataclasses.replace(self, **changes)


HEALTHY = Variant()


@dataclasses.dataclass(frozen=True)
class Numerics:
    """Dtypes and rounding of the arithmetic.

    Attributes:
        compute: dtype of the products and sums here.
        activation: dtype of the tested implementation; the embedding's scale is rounded to it.
        rounded: whether to round every intermediate result to `activation`, as the implementation
            does; the distance to the pass without rounding is its noise.
        angle: dtype of the rotary angles; implementations use fp32, exact angles are fp64.
    """

    compute: torch.dtype = torch.float64
    activation: torch.dtype = torch.float32
    rounded: bool = False
    angle: torch.dtype = torch.float64

    def round(self, x: Tensor) -> Tensor:
        """`x` rounded to the dtype of the activations, if this rounds."""
        return x.to(self.activation).to(self.compute) if self.rounded else x


@torch.inference_mode()
def logits(
    weights: Weights,
    config: GemmaConfig,
    ids: Sequence[int],
    variants: Sequence[Variant] = (HEALTHY,),
    numerics: Numerics = Numerics(),
    start: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> list[Tensor]:
    """The logits [T, V] of `ids` under each variant.

    Args:
        weights: weights by their names in an HF checkpoint without "model.", of any dtype.
        config: the model's shape.
        ids: one row of tokens.
        variants: the variants to compute.
        numerics: dtypes and rounding.
        start: position of the first token.
        tick: called after each layer.
    """
    n = numerics
    ids_T = torch.tensor(list(ids), device=weights["embed_tokens.weight"].device)
    embedded = weights["embed_tokens.weight"][ids_T].to(n.compute)
    streams = [n.round(embedded * _embedding_scale(config, v, n)) for v in variants]
    convert = _Converter(n.compute)
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        names = [k.removeprefix(prefix) for k in weights if k.startswith(prefix)]
        w = {name: convert(name, weights[prefix + name]) for name in names}
        streams = [
            _layer(w, config, layer, x, v, n, start) for x, v in zip(streams, variants, strict=True)
        ]
        tick()
    w_D = weights["norm.weight"].to(n.compute)
    normed = [_norm(x, w_D, config, v, n) for x, v in zip(streams, variants, strict=True)]
    parts: list[list[Tensor]] = [[] for _ in variants]
    for rows_VD in weights["embed_tokens.weight"].split(_VOCABULARY_BLOCK):
        rows = convert(f"{len(rows_VD)} rows", rows_VD)
        for part, x_TD, v in zip(parts, normed, variants, strict=True):
            part.append(_final_cap(n.round(x_TD @ rows.T), config, v, n))
    tick()
    return [torch.cat(part, dim=-1) for part in parts]


class _Converter:
    """Converts weights to a dtype, in memory that every layer uses again: fresh pages are slow."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        if weight.dtype == self._dtype:
            return weight
        if name not in self._held:
            self._held[name] = weight.to(self._dtype)
            return self._held[name]
        return self._held[name].copy_(weight)


def _embedding_scale(config: GemmaConfig, v: Variant, n: Numerics) -> float:
    if v.embedding_scale == "off":
        return 1.0
    exact = config.hidden_size**0.5
    if v.embedding_scale == "exact":
        return exact
    return float(torch.tensor(exact, dtype=n.activation))


def _norm(x_TD: Tensor, w_D: Tensor, config: GemmaConfig, v: Variant, n: Numerics) -> Tensor:
    mean_square = (x_TD * x_TD).mean(-1, keepdim=True)
    return n.round(x_TD / (mean_square + config.rms_norm_eps).sqrt() * (v.norm_offset + w_D))


def _final_cap(x: Tensor, config: GemmaConfig, v: Variant, n: Numerics) -> Tensor:
    caps = {
        "on": config.final_logit_softcapping,
        "off": None,
        "attention's": config.attn_logit_softcapping,
    }
    cap = caps[v.final_cap]
    return x if cap is None else n.round(cap * torch.tanh(x / cap))


def _layer(
    w: Weights, config: GemmaConfig, layer: int, x_TD: Tensor, v: Variant, n: Numerics, start: int
) -> Tensor:
    def norm(name: str, y_TD: Tensor) -> Tensor:
        return _norm(y_TD, w[f"{name}.weight"], config, v, n)

    local = (layer % 2 == 0) != v.exchanged
    attended = _attention(w, config, local, norm("input_layernorm", x_TD), v, n, start)
    if v.post_norms:
        attended = norm("post_attention_layernorm", attended)
    h_TD = n.round(x_TD + attended)
    mlp = _mlp(w, norm("pre_feedforward_layernorm", h_TD), v, n)
    if v.post_norms:
        mlp = norm("post_feedforward_layernorm", mlp)
    return n.round(h_TD + mlp)


def _mlp(w: Weights, x_TD: Tensor, v: Variant, n: Numerics) -> Tensor:
    gate = n.round(x_TD @ w["mlp.gate_proj.weight"].T)
    up = n.round(x_TD @ w["mlp.up_proj.weight"].T)
    if v.gelu == "erf":
        gelu = gate * (1 + torch.erf(gate / math.sqrt(2))) / 2
    else:
        gelu = gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) / 2
    return n.round(n.round(n.round(gelu) * up) @ w["mlp.down_proj.weight"].T)


def _attention(
    w: Weights, config: GemmaConfig, local: bool, x_TD: Tensor, v: Variant, n: Numerics, start: int
) -> Tensor:
    T, H = len(x_TD), config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads
    q_TNH = n.round(x_TD @ w["self_attn.q_proj.weight"].T).view(T, N, H)
    k_TKH = n.round(x_TD @ w["self_attn.k_proj.weight"].T).view(T, K, H)
    v_TKH = n.round(x_TD @ w["self_attn.v_proj.weight"].T).view(T, K, H)
    cos, sin = _angles(config, T, v, n, start, x_TD.device)
    q_TNH, k_TKH = _rotate(q_TNH, cos, sin, v, n), _rotate(k_TKH, cos, sin, v, n)
    hidden_TT = _hidden(config, T, local, v, x_TD.device)
    scalar = v.query_scalar or config.query_pre_attn_scalar or config.head_dim
    kv = [head % K if v.grouping == "modulo" else head // (N // K) for head in range(N)]
    scores_NTT = n.round(q_TNH.transpose(0, 1) @ k_TKH[:, kv].permute(1, 2, 0)) / math.sqrt(scalar)
    weights_NTT = n.round(_softmax(scores_NTT, hidden_TT, config, v))
    out_TNH = n.round(weights_NTT @ v_TKH[:, kv].transpose(0, 1)).transpose(0, 1)
    return n.round(out_TNH.reshape(T, N * H) @ w["self_attn.o_proj.weight"].T)


def _softmax(scores_NTT: Tensor, hidden_TT: Tensor, config: GemmaConfig, v: Variant) -> Tensor:
    caps = {
        "on": config.attn_logit_softcapping,
        "after the mask": config.attn_logit_softcapping,
        "off": None,
        "final's": config.final_logit_softcapping,
    }
    cap = caps[v.attention_cap]
    if v.attention_cap == "after the mask":
        scores_NTT = scores_NTT.masked_fill(hidden_TT, -1e30)
    if cap is not None:
        scores_NTT = cap * torch.tanh(scores_NTT / cap)
    if v.attention_cap != "after the mask":
        scores_NTT = scores_NTT.masked_fill(hidden_TT, -math.inf)
    return scores_NTT.softmax(-1)


def _hidden(config: GemmaConfig, T: int, local: bool, v: Variant, device: torch.device) -> Tensor:
    """Mask of the keys (columns) that each query (row) must not attend to."""
    index = torch.arange(T, device=device)
    distance_TT = index[:, None] - index[None, :]
    hidden = distance_TT < 0 if v.causal else torch.zeros_like(distance_TT, dtype=torch.bool)
    if local and v.window is not None:
        hidden = hidden | (distance_TT >= config.sliding_window + v.window)
    return hidden


def _angles(
    config: GemmaConfig, T: int, v: Variant, n: Numerics, start: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, [T, 1, H/2]."""
    positions = torch.arange(start, start + T, device=device).to(v.position_dtype).to(n.angle)
    pair = torch.arange(config.head_dim // 2, device=device).to(n.angle)
    angle = positions[:, None, None] / config.rope_theta ** (2 * pair / config.head_dim)
    return n.round(angle.cos().to(n.compute)), n.round(angle.sin().to(n.compute))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, v: Variant, n: Numerics) -> Tensor:
    if v.pairs == "neighbors":
        a, b = x[..., 0::2], x[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        half = x.shape[-1] // 2
        a, b = x[..., :half], x[..., half:]
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return n.round(turned)


def shapes(config: GemmaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads
    yield "embed_tokens.weight", (config.vocab_size, D)
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        yield f"{prefix}self_attn.q_proj.weight", (N * H, D)
        yield f"{prefix}self_attn.k_proj.weight", (K * H, D)
        yield f"{prefix}self_attn.v_proj.weight", (K * H, D)
        yield f"{prefix}self_attn.o_proj.weight", (D, N * H)
        yield f"{prefix}mlp.gate_proj.weight", (F, D)
        yield f"{prefix}mlp.up_proj.weight", (F, D)
        yield f"{prefix}mlp.down_proj.weight", (D, F)
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{prefix}{norm}_layernorm.weight", (D,)
    yield "norm.weight", (D,)
