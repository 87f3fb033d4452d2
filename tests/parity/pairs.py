"""The same random weights in our model and in transformers' (eager attention, which has caps)."""

import hypothesis.strategies as st
import torch
import transformers
from torch import Tensor

from gemmule.model.config import GemmaConfig, preset
from gemmule.model.gemma import Gemma
from gemmule.model.kv_cache import KVCache

TOLERANCE = 3e-5  # absolute, on logits in fp32


def shrunken(name: str) -> GemmaConfig:
    """A preset divided by 16 (small ones by 4), with its own heads and proportions.

    The window is shorter than the tests' sequences, so that it matters.
    """
    full = preset(name, vocab_size=211)
    by = 16 if full.head_dim >= 128 else 4
    return full.model_copy(
        update={
            "hidden_size": full.hidden_size // by,
            "intermediate_size": full.intermediate_size // by,
            "num_hidden_layers": 4,
            "head_dim": full.head_dim // by,
            "query_pre_attn_scalar": (full.query_pre_attn_scalar or full.head_dim) // by,
            "sliding_window": 9,
            "vocab_size": 211,
        }
    )


@st.composite
def configs(draw: st.DrawFn) -> GemmaConfig:
    """Any small shape that both implementations accept, with the scalar far from head_dim.

    What a norm divides by has at least 24 dimensions (residual stream, heads side by side, ffn):
    of few random numbers all are now and then so small that fp32's rounding is magnified tenfold,
    in both implementations alike (measured from float64).
    """
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = kv_heads * group
    head_dim = 2 * (12 // heads + draw(st.integers(1, 8)))
    return GemmaConfig(
        vocab_size=draw(st.integers(40, 400)),
        hidden_size=heads * (24 // heads + draw(st.integers(1, 8))),  # theirs divides by heads
        intermediate_size=draw(st.integers(32, 160)),
        num_hidden_layers=draw(st.integers(1, 5)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=draw(st.integers(1, 48).filter(lambda s: 2 * abs(s - head_dim) > s)),
        sliding_window=draw(st.integers(2, 24)),
        attn_logit_softcapping=draw(st.none() | st.sampled_from([0.5, 2.0, 7.5, 50.0])),
        final_logit_softcapping=draw(st.none() | st.sampled_from([0.5, 2.0, 7.5, 30.0])),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        rope_theta=draw(st.sampled_from([50.0, 1e3, 1e4, 5e5])),
    )


def their_model(config: GemmaConfig, std: float = 1.0) -> transformers.Gemma2ForCausalLM:
    return transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **config.model_dump(),
            hidden_activation="gelu_pytorch_tanh",
            attn_implementation="eager",
            initializer_range=std,
        )
    ).eval()


@torch.no_grad()
def pair(
    config: GemmaConfig, seed: int, saturated: bool = False
) -> tuple[Gemma, transformers.Gemma2ForCausalLM]:
    """Both models with one set of large random weights.

    Args:
        config: their shape.
        seed: of the weights.
        saturated: leave every matrix N(0, 1), which drives scores and logits into their caps,
            instead of sizing them by `size_weights`.
    """
    torch.manual_seed(seed)
    theirs = their_model(config)
    for name, p in theirs.named_parameters():
        if "norm" in name:  # transformers starts norms at zero: (1 + w) would go untested
            p.normal_(0, 0.3)
    if not saturated:
        size_weights(theirs, config)
    ours = Gemma(config).eval()
    ours.load_state_dict(weights(theirs))
    return ours, theirs


def size_weights(theirs: transformers.Gemma2ForCausalLM, config: GemmaConfig) -> None:
    """Gives scores and logits a spread at which their caps bend them, and no more.

    Weights from N(0, 1) make a random deep model chaotic: scores of hundreds choose one key or
    another by their last bits, and rounding grows past any tolerance in both implementations.
    """
    scores = _spread(config.attn_logit_softcapping)
    logits = _spread(config.final_logit_softcapping)
    by = (config.head_dim**0.5 * config.attention_scale / scores) ** -0.5
    for name, p in theirs.named_parameters():
        if "embed" in name:
            p.mul_(logits * p.shape[1] ** -0.5)
        elif "norm" not in name:
            p.mul_(p.shape[1] ** -0.5 * (by if "q_proj" in name or "k_proj" in name else 1.0))


def _spread(cap: float | None) -> float:
    return 1.0 if cap is None else min(cap, 1.5)


def weights(theirs: transformers.Gemma2ForCausalLM) -> dict[str, Tensor]:
    """Their weights under our names."""
    state = {k.removeprefix("model."): v for k, v in theirs.state_dict().items()}
    state.pop("lm_head.weight", None)  # the embedding once more
    return state


def tokens(config: GemmaConfig, rows: int, length: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (rows, length), generator=g)


def padding(lengths: list[int], longest: int, side: str) -> tuple[Tensor, Tensor]:
    """Mask [B, T] and positions [B, T] of rows padded on one side."""
    mask = torch.ones(len(lengths), longest, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(0, longest - length) if side == "left" else slice(length, longest)] = 0
    return mask, (mask.cumsum(-1) - 1).clamp(min=0)


def cached(
    model: Gemma,
    ids: Tensor,
    chunks: list[int],
    positions: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Logits of `ids` fed through a cache in `chunks`."""
    assert sum(chunks) == ids.shape[1]
    cache = KVCache.new(model.config, *ids.shape, dtype=model.embed_tokens.weight.dtype)
    parts, at = [], 0
    for n in chunks:
        now = slice(at, at + n)
        parts.append(
            model(
                ids[:, now],
                positions_BT=None if positions is None else positions[:, now],
                doc_ids_BT=None if segments is None else segments[:, now],
                cache=cache,
            )
        )
        at += n
    return torch.cat(parts, 1)


def without(model: Gemma, **changes: object) -> Gemma:
    """The same weights under a changed config."""
    other = Gemma(model.config.model_copy(update=changes))
    other.load_state_dict(model.state_dict())
    return other
