"""Attention: what a backend is, and the plain one.

`gemma.Attention` projects its input, calls a backend, and projects the result. A backend decides
how queries meet keys: within the sequence (`block_attention`, for training and prefill;
`plain_attention`, to compare with), or with keys and values kept from before (`kv_cache.KVCache`,
and the batch runner's). Another one needs no change to the model: it is passed to
`Gemma.hidden_states`. Shapes as in gemma.py.
"""

from typing import Protocol

import torch
from torch import Tensor

from gemmule.losses.soft_cap import soft_cap


class AttentionLayer(Protocol):
    """What a backend may know of the layer it computes.

    Attributes:
        layer: number of the layer, from 0.
        window: number of positions a query can see, itself included; None: all before it.
        scale: factor of the scores.
        cap: soft cap of the scores; None: none.
    """

    layer: int
    window: int | None
    scale: float
    cap: float | None


class AttentionBackend(Protocol):
    """Computes attention of rotated queries to keys and values."""

    def __call__(
        self,
        layer: AttentionLayer,
        q_BTNH: Tensor,
        k_BTKH: Tensor,
        v_BTKH: Tensor,
        doc_ids_BT: Tensor | None,
        /,
    ) -> Tensor:
        """Returns the weighted values of each query, [B, T, N, H].

        Args:
            layer: the layer.
            q_BTNH: rotated queries.
            k_BTKH: rotated keys of the same tokens.
            v_BTKH: values of the same tokens.
            doc_ids_BT: a token sees only tokens with its own number; None: each row is one
                document.
        """


def attend(
    q_BTNH: Tensor,
    k_BSKH: Tensor,
    v_BSKH: Tensor,
    q_index_T: Tensor,
    k_index_S: Tensor,
    q_doc_ids_BT: Tensor | None,
    k_doc_ids_BS: Tensor | None,
    window: int | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Soft-capped grouped-query attention over explicit indices, written plainly.

    Query i sees key j when j <= i, i - j < `window` (None: no limit) and both belong to the same
    document. The cap comes before the mask; the softmax is fp32. Returns [B, T, N, H].
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q_BKgH = q_BTNH.view(B, T, K, G, H).permute(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    k_BKHS = k_BSKH.permute(0, 2, 3, 1)
    scores = soft_cap((q_BKgH @ k_BKHS).float() * scale, cap).view(B, K, G, T, S)
    distance_TS = q_index_T[:, None] - k_index_S[None, :]
    allowed = distance_TS >= 0
    if window is not None:
        allowed = allowed & (distance_TS < window)
    if q_doc_ids_BT is not None and k_doc_ids_BS is not None:
        same = q_doc_ids_BT[:, :, None] == k_doc_ids_BS[:, None, :]
        allowed = (allowed & same)[:, None, None]
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).type_as(v_BSKH).view(B, K, G * T, S)
    out_BKGTH = (weights @ v_BSKH.transpose(1, 2)).view(B, K, G, T, H)
    return out_BKGTH.permute(0, 3, 1, 2, 4).reshape(B, T, N, H)


def plain_attention(
    layer: AttentionLayer,
    q_BTNH: Tensor,
    k_BTKH: Tensor,
    v_BTKH: Tensor,
    doc_ids_BT: Tensor | None,
) -> Tensor:
    """Backend that attends within the sequence by `attend`: the reference for all others."""
    index_T = torch.arange(q_BTNH.shape[1], device=q_BTNH.device)
    return attend(
        q_BTNH, k_BTKH, v_BTKH, index_T, index_T, doc_ids_BT, doc_ids_BT,
        layer.window, layer.scale, layer.cap,
    )  # fmt: skip
