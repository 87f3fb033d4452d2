"""Attention by torch's FlexAttention: one fused kernel with the cap and the window, for GPUs.

The cap is a change to each score, the window and the documents are a mask of blocks; torch compiles
both into a Triton kernel (Dong et al. 2024, arXiv 2412.05496). Blocks that no query may see are
skipped, so a local layer costs tokens x window, as in block_attention. Without compiling, torch
computes every score: right, and slow.

Shapes as in gemma.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gemmule.losses.soft_cap import soft_cap
from gemmule.model.attention import AttentionLayer


class FlexAttention:
    """Attention backend within whole sequences.

    Args:
        compiled: whether to compile the kernel; for comparisons on a CPU it need not be.
    """

    def __init__(self, *, compiled: bool) -> None:
        attend: Callable[..., Any] = flex_attention
        self._attend = torch.compile(attend, dynamic=False) if compiled else attend
        self._doc_ids: Tensor | None = None
        self._masks: dict[tuple[Any, ...], BlockMask] = {}

    def __call__(
        self,
        layer: AttentionLayer,
        q_BTNH: Tensor,
        k_BTKH: Tensor,
        v_BTKH: Tensor,
        doc_ids_BT: Tensor | None,
    ) -> Tensor:
        """As AttentionBackend says."""
        cap = layer.cap

        def capped(score: Tensor, *_: Tensor) -> Tensor:
            return soft_cap(score, cap)

        mask = self._mask(layer.window, q_BTNH.shape[1], q_BTNH.device, doc_ids_BT)
        out_BNTH = self._attend(
            q_BTNH.transpose(1, 2), k_BTKH.transpose(1, 2), v_BTKH.transpose(1, 2),
            score_mod=capped, block_mask=mask, scale=layer.scale, enable_gqa=True,
        )  # fmt: skip
        return Tensor.transpose(out_BNTH, 1, 2)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _mask(
        self, window: int | None, length: int, device: torch.device, doc_ids_BT: Tensor | None
    ) -> BlockMask:
        """The blocks that a layer computes; layers with the same window share them in a pass."""
        if doc_ids_BT is not self._doc_ids:
            self._doc_ids = doc_ids_BT
            self._masks.clear()
        key = (window, length, device)
        if key not in self._masks:
            rows = None if doc_ids_BT is None else doc_ids_BT.shape[0]
            self._masks[key] = create_block_mask(
                _visible(window, doc_ids_BT), rows, None, length, length, device=str(device)
            )
        return self._masks[key]


def _visible(window: int | None, doc_ids_BT: Tensor | None) -> Callable[..., Tensor]:
    """Whether a query sees a key: it is not later, in the window, and in the same document."""

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k
        if window is not None:
            seen = seen & (q - k < window)
        if doc_ids_BT is not None:
            seen = seen & (doc_ids_BT[b, q] == doc_ids_BT[b, k])
        return seen

    return visible
