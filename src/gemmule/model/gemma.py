"""The whole Gemma 2 forward pass (arXiv 2408.00118, section 2; facts checked against HF's code).

Shapes: B batch, T query, S key, D model, N query heads, K kv heads, G = N/K, H head dim,
F ffn hidden, V vocabulary. `x_BTD` is a tensor of shape [B, T, D].

How queries meet keys is up to a backend: `attention.attend` is attention written plainly, which
cached decoding uses; a whole sequence goes through block_attention.py, which gives the same for
less work.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemmule.losses.head import Head
from gemmule.model.attention import AttentionBackend
from gemmule.model.block_attention import block_attention
from gemmule.model.config import GemmaConfig
from gemmule.model.kv_cache import KVCache


def rope_tables(positions_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles, fp32, [B, T, 1, H/2]; positions are integers."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_BT.device)
    inv_freq = theta ** -(pairs / head_dim)
    angles = positions_BT.float()[..., None, None] * inv_freq
    return angles.cos(), angles.sin()


def rotate(x_BTNH: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary positions to pairs (i, i + H/2), in fp32."""
    cos, sin = rope
    a, b = x_BTNH.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x_BTNH)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + w), wholly in fp32, cast back at the end; w starts at zero."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Normalizes the last dimension."""
        x = x_BTD.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return (x * (1.0 + self.weight.float())).type_as(x_BTD)


class Attention(nn.Module):
    """Grouped-query attention with soft-capped scores; local layers see a sliding window."""

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__()
        D, H = config.hidden_size, config.head_dim
        N, K = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.head_dim = layer, H
        self.window = config.sliding_window if config.is_local(layer) else None
        self.scale, self.cap = config.attention_scale, config.attn_logit_softcapping
        self.q_proj = nn.Linear(D, N * H, bias=False)
        self.k_proj = nn.Linear(D, K * H, bias=False)
        self.v_proj = nn.Linear(D, K * H, bias=False)
        self.o_proj = nn.Linear(N * H, D, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        doc_ids_BT: Tensor | None,
        attend: AttentionBackend,
    ) -> Tensor:
        """Projects, lets the backend attend, and projects back: [B, T, D] to [B, T, D]."""
        B, T, _ = x_BTD.shape
        q_BTNH = rotate(self.q_proj(x_BTD).view(B, T, -1, self.head_dim), rope)
        k_BTKH = rotate(self.k_proj(x_BTD).view(B, T, -1, self.head_dim), rope)
        v_BTKH = self.v_proj(x_BTD).view(B, T, -1, self.head_dim)
        out_BTNH = attend(self, q_BTNH, k_BTKH, v_BTKH, doc_ids_BT)
        return self.o_proj(out_BTNH.reshape(B, T, -1))


def gelu_tanh(x: Tensor) -> Tensor:
    """X (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    if torch.compiler.is_compiling():  # (1 + tanh(u)) / 2 = sigmoid(2u): an exponential, no tanh
        return x * torch.sigmoid(2 * (2 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x))
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    """GeGLU: down(gelu_tanh(gate(x)) * up(x))."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        D, F_ = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, F_, bias=False)
        self.up_proj = nn.Linear(D, F_, bias=False)
        self.down_proj = nn.Linear(F_, D, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        return self.down_proj(gelu_tanh(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """One layer: norms before and after attention, and before and after the MLP."""

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        doc_ids_BT: Tensor | None = None,
        attend: AttentionBackend = block_attention,
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        attended = self.self_attn(self.input_layernorm(x_BTD), rope, doc_ids_BT, attend)
        h_BTD = x_BTD + self.post_attention_layernorm(attended)
        fed = self.mlp(self.pre_feedforward_layernorm(h_BTD))
        return h_BTD + self.post_feedforward_layernorm(fed)


class Gemma(nn.Module):
    """Token ids to soft-capped logits; the head is the embedding's transpose.

    Parameter names are those of the HF checkpoint without its leading "model.".

    Attributes:
        attend: attention backend of whole sequences.
    """

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attend: AttentionBackend = block_attention
        if not self.norm.weight.is_meta:  # where drawing does nothing, slowly
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draws matrices with variance 1/fan_in and embeddings with 1/D; norms start at zero."""
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.weight.zero_()
            elif isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0.0, module.weight.shape[1] ** -0.5, generator=generator)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the first layer reads, [B, T, D]."""
        x_BTD = self.embed_tokens(tokens_BT)
        # The constant is rounded to the activations' dtype first, as the reference does.
        return x_BTD * torch.tensor(self.config.hidden_size**0.5, dtype=x_BTD.dtype)

    def hidden_states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        doc_ids_BT: Tensor | None = None,
        cache: KVCache | None = None,
        attend: AttentionBackend | None = None,
    ) -> Tensor:
        """Returns final hidden states [B, T, D], which the head reads.

        Args:
            tokens_BT: ids.
            positions_BT: rotary positions; None: 0, 1, … after the length of the cache.
            doc_ids_BT: a token sees only tokens with its own number (packed documents; padding
                has the number 0). None: each row is one document.
            cache: keys and values of earlier tokens; it takes in these tokens, and is the backend.
            attend: attention backend without a cache; None: the model's own.
        """
        T = tokens_BT.shape[1]
        start, attend = 0, attend or self.attend
        if cache is not None:
            start, attend = cache.length, cache
            doc_ids_BT = cache.begin(T, doc_ids_BT)
        if positions_BT is None:
            positions_BT = torch.arange(start, start + T, device=tokens_BT.device)[None]
        rope = rope_tables(positions_BT, self.config.head_dim, self.config.rope_theta)
        x_BTD = self.embed(tokens_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, rope, doc_ids_BT, attend)
        if cache is not None:
            cache.length += T
        return self.norm(x_BTD)

    @property
    def head(self) -> Head:
        """The output head: the embedding's transpose and the final soft cap."""
        return Head(self.embed_tokens.weight, self.config.final_logit_softcapping)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Soft-capped logits [..., V] of final hidden states [..., D]."""
        return self.head.logits(x_BTD)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        doc_ids_BT: Tensor | None = None,
        cache: KVCache | None = None,
        attend: AttentionBackend | None = None,
    ) -> Tensor:
        """Returns soft-capped logits [B, T, V]; arguments as in `hidden_states`."""
        x_BTD = self.hidden_states(
            tokens_BT,
            positions_BT=positions_BT,
            doc_ids_BT=doc_ids_BT,
            cache=cache,
            attend=attend,
        )
        return self.logits(x_BTD)
