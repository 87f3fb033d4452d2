"""Bugs that shipped in ports of Gemma 2: what each computes, and how to fix it."""

import dataclasses

import torch

from gemmule.doctor.reference import Variant
from gemmule.model.config import GemmaConfig


@dataclasses.dataclass(frozen=True)
class Bug:
    """One known bug.

    Attributes:
        check: row of the table that it belongs to.
        name: what is wrong, as the end of "a model whose …".
        remedy: how to fix it.
        variant: the forward pass with the bug.
        leaks: whether later tokens or padding reach earlier tokens, so that logits of a row differ
            from those of its parts.
    """

    check: str
    name: str
    remedy: str
    variant: Variant
    leaks: bool = False


# The checks that compare logits, and what a pass means.
LOGIT_CHECKS = {
    "attention soft cap": "scores are capped, before the mask",
    "final soft cap": "logits are capped",
    "caps not swapped": "scores have their own cap and logits theirs",
    "sliding window": "a local layer sees exactly sliding_window keys",
    "local and global layers": "even layers are local, odd ones global",
    "query scale": "scores are scaled by query_pre_attn_scalar",
    "tanh GELU": "the MLP uses the tanh form of GELU",
    "norms (1 + w)": "norms multiply by 1 + w, before and after each half of a layer",
    "rotary pairs": "dimension i turns with i + head_dim/2",
    "rotary positions": "positions beyond 8190 are exact",
    "query and kv heads": "neighboring query heads share a kv head",
    "embedding scale": "embeddings are scaled by sqrt(hidden_size)",
}


def known_bugs(config: GemmaConfig) -> tuple[Bug, ...]:
    """The bugs that can show in a model of this shape."""
    bugs = [
        Bug(
            "attention soft cap", "attention cap is missing",
            "use an attention that caps scores (in transformers attn_implementation eager, never "
            "sdpa)",
            Variant(attention_cap="off"),
        ),
        Bug(
            "attention soft cap", "attention cap comes after the mask",
            "cap first: after it, a masked score is -cap and no longer hidden",
            Variant(attention_cap="after the mask"),
            leaks=True,
        ),
        Bug(
            "final soft cap", "final cap is missing",
            "apply cap * tanh(logits / cap) with final_logit_softcapping",
            Variant(final_cap="off"),
        ),
        Bug(
            "caps not swapped", "two caps are swapped",
            "scores have attn_logit_softcapping (50), logits final_logit_softcapping (30)",
            Variant(attention_cap="final's", final_cap="attention's"),
        ),
        Bug(
            "sliding window", "sliding window is ignored",
            "mask keys at a distance of sliding_window and more in local layers",
            Variant(window=None),
        ),
        Bug(
            "sliding window", "sliding window is one key too wide",
            "a query sees sliding_window keys, itself among them: distance < window",
            Variant(window=1),
        ),
        Bug(
            "sliding window", "sliding window is one key too narrow",
            "a query sees sliding_window keys, itself among them: distance < window",
            Variant(window=-1),
        ),
        Bug(
            "local and global layers", "local and global layers are exchanged",
            "layers 0, 2, 4, … have the window",
            Variant(exchanged=True),
        ),
        Bug(
            "tanh GELU", "GELU is the exact (erf) one",
            "use the tanh approximation: hidden_activation gelu_pytorch_tanh",
            Variant(gelu="erf"),
        ),
        Bug(
            "norms (1 + w)", "norms multiply by w instead of 1 + w",
            "add 1 to norm weights once, in the norm or in the converter",
            Variant(norm_offset=0.0),
        ),
        Bug(
            "norms (1 + w)", "norms after attention and MLP are missing",
            "a layer has four norms: two before, two after",
            Variant(post_norms=False),
        ),
        Bug(
            "rotary pairs", "rotary pairs are neighbors (2i, 2i + 1)",
            "rotate i with i + head_dim/2, or permute the rows of q_proj and k_proj",
            Variant(pairs="neighbors"),
        ),
        Bug(
            "rotary positions", "positions are rounded to bfloat16",
            "keep positions as integers or fp32: bf16 has none between 8160 and 8192",
            Variant(position_dtype=torch.bfloat16),
        ),
        Bug(
            "rotary positions", "positions are rounded to float16",
            "keep positions as integers or fp32: fp16 counts in fours beyond 4096",
            Variant(position_dtype=torch.float16),
        ),
        Bug(
            "embedding scale", "embeddings are not scaled",
            "multiply embeddings by sqrt(hidden_size), rounded to their dtype",
            Variant(embedding_scale="off"),
        ),
    ]  # fmt: skip
    N, K = config.num_attention_heads, config.num_key_value_heads
    if N > K > 1:
        bugs.append(
            Bug(
                "query and kv heads", "query heads take kv heads in turn (n % K)",
                "query head n reads kv head n // (heads / kv heads)",
                Variant(grouping="modulo"),
            )
        )  # fmt: skip
    scalar = config.query_pre_attn_scalar or config.head_dim
    wrong = {"head_dim": config.head_dim, "hidden_size / heads": config.hidden_size / N}
    for source, value in wrong.items():
        if not 0.999 < value / scalar < 1.001:
            bugs.append(
                Bug(
                    "query scale",
                    f"scores are scaled by 1/sqrt({source})",
                    f"scale by 1/sqrt(query_pre_attn_scalar), here {scalar}",
                    Variant(query_scalar=value),
                )
            )
    return tuple(bugs)
