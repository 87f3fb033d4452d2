"""GGUF's names of Gemma's tensors, and the rules that llama.cpp applies to them.

Facts read from llama.cpp's src/models/gemma2.cpp and gemma3.cpp, and its gguf package's tables.
"""

import re

ARCHITECTURE = "gemma2"
# llama.cpp's query scale depends on the number of layers: see `query_scalar`.
LAYERS_OF_27B, LAYERS_OF_GEMMA3_27B = 46, 62
NORM_OFFSET = 1.0  # GGUF stores 1 + w for a norm weight w

_TOP = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
_ONLY_IN_GEMMA3 = {
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
}
_OURS = {theirs: ours for ours, theirs in (_TOP | _IN_BLOCK).items()}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,8})\.(.+)")


def to_gguf(name: str) -> str:
    """GGUF's name of our parameter `name`."""
    match = _LAYER.fullmatch(name)
    return f"blk.{match[1]}.{_IN_BLOCK[match[2]]}" if match else _TOP[name]


def from_gguf(name: str) -> str:
    """Our name of GGUF's tensor `name`; a name that Gemma 2 does not have is returned in quotes."""
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _IN_BLOCK.values():
        return f"layers.{match[1]}.{_OURS[match[2]]}"
    return _OURS[name] if name in _TOP.values() else repr(name[:80])


def from_gemma3_gguf(name: str) -> str:
    """`from_gguf` for a Gemma 3, which also has norms of queries and keys."""
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _ONLY_IN_GEMMA3:
        return f"layers.{match[1]}.{_ONLY_IN_GEMMA3[match[2]]}"
    return from_gguf(name)


def is_norm(name: str) -> bool:
    """Whether our parameter `name` is a norm weight, which GGUF stores with 1 added."""
    return name.endswith("norm.weight")


def query_scalar(
    layers: int, hidden_size: int, heads: int, head_dim: int, largest: int = LAYERS_OF_27B
) -> int:
    """llama.cpp's query_pre_attn_scalar, which GGUF files do not store.

    llama.cpp treats every model with the 27B's number of layers, `largest`, as the 27B.
    """
    return hidden_size // heads if layers == largest else head_dim
