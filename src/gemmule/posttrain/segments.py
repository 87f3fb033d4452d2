"""Conversations through a model so that a result's bits do not depend on the rest of the batch.

The conversations of a batch go through the linear layers as one row of tokens without padding
between them, and through attention one by one, each with positions from 0. A row of a matrix
product does not depend on the other rows if there are enough of them (infer/runners/
batch_invariant.py), so rows are added at the end; the head's products all have one shape. So
padding, packing, order and company of a conversation leave its log-probabilities as they are, bit
for bit: those of a policy equal those of its reference while the weights are equal.

Shapes: B rows, T tokens of a row, N tokens of all conversations, S conversations, D model, L
labels.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.data.batch import Batch
from gemmule.infer.runners.batch_invariant import padding_rows
from gemmule.losses.chunked_head import chunk_size
from gemmule.losses.head import Head
from gemmule.losses.labels import IGNORED
from gemmule.model.attention import AttentionLayer
from gemmule.model.block_attention import block_attention
from gemmule.model.gemma import Gemma

_HEAD_ROWS = 256  # largest number of rows of one product with the head


@dataclass(frozen=True)
class Segments:
    """The conversations of a batch, one after the other.

    Attributes:
        tokens_N: ids.
        labels_N: the next token where it is trained, else IGNORED.
        lengths: number of tokens of each conversation.
    """

    tokens_N: Tensor
    labels_N: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch) -> "Segments":
        """The conversations of a batch, in its order, rows one after the other."""
        B, T = batch.doc_ids_BT.shape
        rows_B1 = torch.arange(B, device=batch.doc_ids_BT.device)[:, None]
        keys_N = (rows_B1 * (T + 1) + batch.doc_ids_BT)[batch.doc_ids_BT > 0]
        _, lengths_S = keys_N.unique_consecutive(return_counts=True)
        real_BT = batch.doc_ids_BT > 0
        return cls(batch.tokens_BT[real_BT], batch.labels_BT[real_BT], tuple(lengths_S.tolist()))

    def label_counts(self) -> Tensor:
        """Number of labels of each conversation, int64 [S]."""
        parts = (self.labels_N != IGNORED).split(self.lengths)
        return torch.stack([part.sum() for part in parts])


def hidden_states(model: Gemma, segments: Segments, *, compiled: bool = False) -> Tensor:
    """Final hidden states [N, D] of the conversations.

    Args:
        model: model; its blocks may be compiled.
        segments: conversations.
        compiled: whether they are, so that few different numbers of rows pay.
    """
    count = len(segments.tokens_N)
    padding = padding_rows(count)
    if compiled:
        padding = _rounded(count + padding) - count
    positions_N = torch.cat([torch.arange(length) for length in segments.lengths])
    x_1ND = model.hidden_states(
        F.pad(segments.tokens_N, (0, padding))[None],
        positions_BT=F.pad(positions_N, (0, padding))[None].to(segments.tokens_N.device),
        attend=_Separately(segments.lengths, padding, compiled),
    )
    return x_1ND[0, :count]


def label_log_likelihoods(
    model: Gemma, segments: Segments, *, compiled: bool = False
) -> tuple[Tensor, ...]:
    """Log-probability of each label, nats, fp32: one tensor for each conversation.

    Differentiable, and without logits [N, V], as `Head.log_likelihoods`.

    Args:
        model: model.
        segments: conversations.
        compiled: whether blocks and losses go through torch.compile.
    """
    head, x_LD, labels_L = _head_rows(model, segments, compiled)
    counts = segments.label_counts().tolist()
    log_p_L = head.log_likelihoods(x_LD, labels_L, compiled=compiled)
    return log_p_L[: sum(counts)].split(counts)


def label_loss(model: Gemma, segments: Segments, *, compiled: bool = False) -> Tensor:
    """Summed cross-entropy with all labels, nats: conversations are added from left to right.

    Unlike `label_log_likelihoods`, it forms the gradient while the logits are there, so that they
    are computed once.

    Args:
        model: model; its blocks may be compiled.
        segments: conversations.
        compiled: whether blocks and losses go through torch.compile.
    """
    head, x_LD, labels_L = _head_rows(model, segments, compiled)
    counts = segments.label_counts().tolist()
    loss, nll_L = head.cross_entropy_by_token(x_LD, labels_L, compiled=compiled)
    sums = [part.sum() for part in nll_L[: sum(counts)].split(counts)]
    # The value of these sums, whose bits do not depend on the batch, and the gradient of `loss`.
    return functools.reduce(torch.add, sums) + (loss - loss.detach())


def _head_rows(model: Gemma, segments: Segments, compiled: bool) -> tuple[Head, Tensor, Tensor]:
    """The head with chunks of one size, and rows that fill them: hidden states and labels."""
    x_ND = hidden_states(model, segments, compiled=compiled)
    index_L = (segments.labels_N != IGNORED).nonzero()[:, 0]
    chunk = min(_HEAD_ROWS, chunk_size(model.head.num_logits))
    padding = -len(index_L) % chunk
    return (
        replace(model.head, chunk=chunk),
        F.pad(x_ND[index_L], (0, 0, 0, padding)),
        F.pad(segments.labels_N[index_L], (0, padding), value=IGNORED),
    )


class _Separately:
    """Attention backend under which each conversation attends to itself alone.

    Args:
        lengths: tokens of each conversation.
        padding: rows after them, whose result is zero.
        compiled: whether the blocks that call it are compiled.
    """

    def __init__(self, lengths: Sequence[int], padding: int, compiled: bool) -> None:
        self._sizes = [*lengths, padding]
        self._attend = _uncompiled() if compiled else _attend

    def __call__(
        self,
        layer: AttentionLayer,
        q_BTNH: Tensor,
        k_BTKH: Tensor,
        v_BTKH: Tensor,
        doc_ids_BT: Tensor | None,
    ) -> Tensor:
        """Attends within each conversation."""
        return self._attend(layer, q_BTNH, k_BTKH, v_BTKH, self._sizes)


def _attend(
    layer: AttentionLayer, q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, sizes: Sequence[int]
) -> Tensor:
    split = (x.split(list(sizes), dim=1) for x in (q_BTNH, k_BTKH, v_BTKH))
    *parts, rest = zip(*split, strict=True)
    outs = [block_attention(layer, q, k, v, None) for q, k, v in parts]
    return torch.cat([*outs, torch.zeros_like(rest[0])], dim=1)


@functools.cache
def _uncompiled() -> Callable[..., Tensor]:
    """`_attend` for compiled blocks: otherwise each combination of lengths would be compiled."""
    uncompiled: Callable[..., Tensor] = torch.compiler.disable(_attend)
    return uncompiled


def _rounded(rows: int) -> int:
    """A number of rows at most a quarter larger, of which there are four in each octave."""
    step = max(1, 1 << (rows - 1).bit_length() >> 3)
    return -(-rows // step) * step
