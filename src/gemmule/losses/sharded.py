"""The losses of one chunk of tokens where each rank has the logits of its shard of the vocabulary.

A chunk's losses go by the chain rule: a rank computes them within its shard as if that were the
whole vocabulary, with the kernels of a single device, and leaves the gradient within the shard and
the probabilities within it. Then the ranks exchange a few numbers per token (shard.py), which say
how likely each shard is, and scale the two. Exchanged are

- for the next token: log-sum-exp and the label's logit;
- for cross-entropy, forward and reverse KL: log-sum-exps of the student (at temperatures T and 1)
  and of the teacher, the divergence within the shard, and the label's logit;
- for sparse targets: log-sum-exps at T and 1, the label's logit, the loss at the kept ids of the
  shard, their weight, and the probability of the others where there is a tail;
- for jsd and the skewed ones: log-sum-exps and the label's logit, and in a second operation the
  two sums of `mixture_sums`.

So one operation per chunk is enough, with or without a soft cap, except for a mixture of student
and teacher, which does not factor into shards. The gradient of the logits stays where it is, and so
does the head's. That of the hidden states is added up once for all chunks (chunked_head.py).

Each function gets the raw logits of a chunk [C, V] and leaves the gradient of the loss in their
place, as a step of `ChunkedHead` does, and returns the loss of each token [C], the same bits on
every rank. Here V is the number of the shard's rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gemmule.losses.chunked_head import capped, maybe_compiled, softmax, tiles, total
from gemmule.losses.divergences import DistillationLoss, Kind
from gemmule.losses.formulas import (
    CHAINED,
    SMALLEST,
    chained,
    divergence_and_gradient,
    mixture_loss,
    mixture_sums,
)
from gemmule.losses.kernels import (
    LabelTerm,
    TokenValues,
    by_tiles,
    cross_entropy_kernel,
    distribution,
)
from gemmule.losses.shard import Shard
from gemmule.losses.sparse_targets import SparseTargets


def sharded_cross_entropy(
    shard: Shard,
    raw_CV: Tensor,
    label_C: Tensor,
    weight_C: Tensor,
    cap: float | None,
    *,
    compiled: bool,
) -> Tensor:
    """Next-token loss of each token [C]."""
    label = LabelTerm(raw_CV, label_C, weight_C, cap, shard)
    kernel = maybe_compiled(cross_entropy_kernel, compiled)

    def tile(raw_CV: Tensor, part: slice, _: slice) -> TokenValues:
        return (kernel(raw_CV, weight_C[part], cap),)

    (log_z_C,) = by_tiles(tile, raw_CV, slice(0, len(raw_CV)))
    log_z_RC, label_RC = shard.gather(log_z_C, label.logit_C1[:, 0])
    log_p_RC, log_z_C = shard.log_shares(log_z_RC)
    _combine(raw_CV, [(shard.mine(log_p_RC.exp()), raw_CV)])
    label.add_gradient(raw_CV, 1.0)
    return _nll(log_z_C, label_RC, weight_C)


def sharded_distillation(
    shard: Shard,
    raw_CV: Tensor,
    teacher_raw_CV: Tensor,
    label_C: Tensor,
    weight_C: Tensor,
    cap: float | None,
    teacher_cap: float | None,
    loss: DistillationLoss,
    *,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """Soft loss with its factor (1 - alpha) T^2, and next-token loss, of each token [C].

    The teacher's logits are overwritten.
    """
    label = LabelTerm(raw_CV, label_C, weight_C, cap, shard)
    kind, mix = loss.divergence.kind, loss.divergence.mix
    T, alpha = loss.temperature, loss.alpha
    scale = (1.0 - alpha) * T
    # The probabilities are needed until the ranks have met; the teacher's logits are not.
    p_CV = teacher_raw_CV if teacher_raw_CV.dtype == raw_CV.dtype else torch.empty_like(raw_CV)
    cold_p_CV = torch.empty_like(raw_CV) if alpha and T != 1.0 else None
    everything = slice(0, len(raw_CV))

    if kind in CHAINED:
        kernel = maybe_compiled(_chained_kernel, compiled)

        def within(raw_CV: Tensor, part: slice, _: slice) -> TokenValues:
            values, *p = kernel(
                raw_CV, teacher_raw_CV[part], weight_C[part], cap, teacher_cap, T, alpha, kind
            )
            _keep(part, p, p_CV, cold_p_CV)
            return values

        log_z_RC, hot_RC, teacher_RC, within_RC, label_RC = shard.gather(
            *by_tiles(within, raw_CV, everything), label.logit_C1[:, 0]
        )
        log_p_RC, log_z_C = shard.log_shares(log_z_RC)
        soft_C, factor_RC, at_log_z_RC = chained(
            kind, shard.log_shares(hot_RC)[0], shard.log_shares(teacher_RC)[0], within_RC
        )
        terms = [(scale * shard.mine(factor_RC), raw_CV), (scale * shard.mine(at_log_z_RC), p_CV)]
        cold_share_C1 = shard.mine(log_p_RC.exp())
    else:
        sums = maybe_compiled(_log_z_kernel, compiled)
        kernel = maybe_compiled(_mixture_kernel, compiled)

        def log_sums(raw_CV: Tensor, part: slice, _: slice) -> TokenValues:
            return sums(raw_CV, teacher_raw_CV[part], cap, teacher_cap, T)

        log_z_RC, hot_RC, teacher_RC, label_RC = shard.gather(
            *by_tiles(log_sums, raw_CV, everything), label.logit_C1[:, 0]
        )
        log_p_RC, log_z_C = shard.log_shares(log_z_RC)
        share_C1 = shard.mine(shard.log_shares(hot_RC)[0].exp())
        teacher_share_C1 = shard.mine(shard.log_shares(teacher_RC)[0].exp())

        def of_mixture(raw_CV: Tensor, part: slice, _: slice) -> TokenValues:
            values, *p = kernel(
                raw_CV, teacher_raw_CV[part], share_C1[part], teacher_share_C1[part],
                weight_C[part], cap, teacher_cap, T, alpha, kind, mix,
            )  # fmt: skip
            _keep(part, p, p_CV, cold_p_CV)
            return values

        part_RC, rest_RC = shard.gather(*by_tiles(of_mixture, raw_CV, everything))
        part_C = part_RC.sum(0)
        soft_C = mixture_loss(kind, mix, part_C, rest_RC.sum(0))
        outer = scale * (1.0 - mix) if kind == "jsd" else scale
        outer_C1 = torch.full_like(share_C1, outer)
        terms = [(outer_C1, raw_CV), (-outer * part_C.float()[:, None], p_CV)]
        # At temperature 1 these are probabilities in the whole vocabulary already.
        cold_share_C1 = shard.mine(log_p_RC.exp()) if T != 1.0 else torch.ones_like(share_C1)
    if alpha:
        terms.append((alpha * cold_share_C1, p_CV if cold_p_CV is None else cold_p_CV))
    _combine(raw_CV, terms)
    label.add_gradient(raw_CV, alpha)
    return (scale * T * soft_C).float() * weight_C, _nll(log_z_C, label_RC, weight_C)


def sharded_sparse_distillation(
    shard: Shard,
    raw_CV: Tensor,
    targets: SparseTargets,
    label_C: Tensor,
    weight_C: Tensor,
    cap: float | None,
    loss: DistillationLoss,
    *,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """Soft loss with its factor (1 - alpha) T^2, and next-token loss, of each token [C].

    Args:
        shard: this rank's.
        raw_CV: raw logits.
        targets: those of the chunk's tokens, with ids of the whole vocabulary.
        label_C: labels.
        weight_C: weight of each token.
        cap: soft cap.
        loss: a divergence that sparse targets allow, temperature and alpha.
        compiled: whether to compile the element-wise part.
    """
    label = LabelTerm(raw_CV, label_C, weight_C, cap, shard)
    T, alpha = loss.temperature, loss.alpha
    scale = (1.0 - alpha) * T
    ids_CK, weight_CK, tail_C, entropy_C = targets.rows(slice(None))
    kept_C = weight_CK.sum(-1).double()
    index_CK, here_CK = shard.place(ids_CK)
    any_C1 = here_CK.any(-1, keepdim=True)
    # An id of another shard becomes the token's first of this one; where there is none, the first
    # column, which is then left as it is.
    first_C1 = index_CK.gather(1, here_CK.int().argmax(-1, keepdim=True))
    index_CK = torch.where(here_CK, index_CK, first_C1)
    weight_CK = weight_CK * here_CK
    logit_CK, slope_CK = capped(raw_CV.gather(1, index_CK), cap)
    cold_p_CV = torch.empty_like(raw_CV) if alpha and T != 1.0 else None
    kernel = maybe_compiled(_sparse_kernel, compiled)

    def tile(raw_CV: Tensor, part: slice, _: slice) -> TokenValues:
        values, *p = kernel(
            raw_CV, index_CK[part], any_C1[part], weight_C[part], cap, T, alpha, tail_C is not None
        )
        _keep(part, p, cold_p_CV)
        return values

    log_z_C, hot_C, tail_p_C = by_tiles(tile, raw_CV, slice(0, len(raw_CV)))
    here_C = (weight_CK * (hot_C[:, None] - logit_CK / T)).sum(-1)
    log_z_RC, hot_RC, tail_RC, here_RC, weight_RC, label_RC = shard.gather(
        log_z_C, hot_C, tail_p_C, here_C, weight_CK.sum(-1), label.logit_C1[:, 0]
    )
    log_p_RC, log_z_C = shard.log_shares(log_z_RC)
    hot_log_p_RC, _ = shard.log_shares(hot_RC)
    soft_C = (here_RC - weight_RC * hot_log_p_RC).sum(0)
    inside_C = outside_C = scale * kept_C  # factors of p at the kept ids and elsewhere
    if tail_C is not None:
        tail_p_C = (tail_RC * hot_log_p_RC.exp()).sum(0).clamp(min=SMALLEST)
        soft_C = soft_C - tail_C * tail_p_C.log()
        inside_C = scale * (kept_C + tail_C)
        outside_C = inside_C - scale * tail_C / tail_p_C
    if loss.divergence.kind == "forward_kl":
        soft_C = soft_C - entropy_C
    share_C = hot_log_p_RC.exp()[shard.rank]
    more = alpha if T == 1.0 else 0.0  # p of the next-token loss is then the same
    at_kept_CK = ((inside_C + more) * share_C).float()[:, None] * raw_CV.gather(1, index_CK)
    _combine(raw_CV, [(((outside_C + more) * share_C).float()[:, None], raw_CV)])
    if tail_C is not None:
        kept_CK = torch.where(any_C1, at_kept_CK.type_as(raw_CV), raw_CV.gather(1, index_CK))
        raw_CV.scatter_(1, index_CK, kept_CK)
    if cold_p_CV is not None:
        ones_C1 = torch.ones_like(weight_C)[:, None]
        _combine(raw_CV, [(ones_C1, raw_CV), (alpha * shard.mine(log_p_RC.exp()), cold_p_CV)])
    raw_CV.scatter_add_(
        1, index_CK, (-scale * weight_CK * slope_CK * weight_C[:, None]).type_as(raw_CV)
    )
    label.add_gradient(raw_CV, alpha)
    return (scale * T * soft_C).float() * weight_C, _nll(log_z_C, label_RC, weight_C)


def _chained_kernel(
    raw_CV: Tensor,
    teacher_raw_CV: Tensor,
    weight_C: Tensor,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float,
    alpha: float,
    kind: Kind,
) -> tuple[TokenValues, Tensor, Tensor | None]:
    """A divergence within the shard; leaves its gradient, times slope and weight.

    Returns:
        Log-sum-exp of the student at 1 and at T, of the teacher at T, and the divergence, [C] each;
        and the student's probabilities at T and at 1 (None where it is not needed), times slope and
        weight.
    """
    centered = kind != "cross_entropy"
    student, hot_C1, logits, slope = distribution(raw_CV, cap, temperature, centered)
    teacher, teacher_C1 = distribution(teacher_raw_CV, teacher_cap, temperature, centered)[:2]
    soft_C, grad_CV = divergence_and_gradient(kind, 0.0, student, teacher)
    scale = slope * weight_C[:, None]
    log_z_C1, cold_p = _cold(logits, hot_C1, cap, temperature, alpha, scale)
    raw_CV.copy_(grad_CV * scale)
    values = (log_z_C1.squeeze(-1), hot_C1.squeeze(-1), teacher_C1.squeeze(-1), soft_C)
    return values, student.p_CV * scale, cold_p


def _log_z_kernel(
    raw_CV: Tensor,
    teacher_raw_CV: Tensor,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float,
) -> TokenValues:
    """Log-sum-exp of the student at 1 and at T, and of the teacher at T, [C] each."""
    _, hot_C1, logits, _ = distribution(raw_CV, cap, temperature, True)
    teacher_C1 = distribution(teacher_raw_CV, teacher_cap, temperature, True)[1]
    log_z_C1 = hot_C1 if temperature == 1.0 else softmax(logits, cap)[1]
    return log_z_C1.squeeze(-1), hot_C1.squeeze(-1), teacher_C1.squeeze(-1)


def _mixture_kernel(
    raw_CV: Tensor,
    teacher_raw_CV: Tensor,
    share_C1: Tensor,
    teacher_share_C1: Tensor,
    weight_C: Tensor,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float,
    alpha: float,
    kind: Kind,
    mix: float,
) -> tuple[TokenValues, Tensor, Tensor | None]:
    """`mixture_sums` of the shard's columns; leaves p u, times slope and weight.

    Returns:
        The two sums [C]; and the student's probabilities: in the whole vocabulary at T, and within
        the shard at 1 (None where it is not needed), times slope and weight.
    """
    student, hot_C1, logits, slope = distribution(raw_CV, cap, temperature, True)
    teacher = distribution(teacher_raw_CV, teacher_cap, temperature, True)[0]
    p = student.p_CV * share_C1
    part, part_C, rest_C = mixture_sums(kind, mix, p, teacher.p_CV * teacher_share_C1)
    scale = slope * weight_C[:, None]
    # `_log_z_kernel` has the log-sum-exp: without alpha there is nothing left to compute.
    cold_p = _cold(logits, hot_C1, cap, temperature, alpha, scale)[1] if alpha else None
    raw_CV.copy_(part * scale)
    return (part_C, rest_C), p * scale, cold_p


def _sparse_kernel(
    raw_CV: Tensor,
    index_CK: Tensor,
    any_C1: Tensor,
    weight_C: Tensor,
    cap: float | None,
    temperature: float,
    alpha: float,
    tail: bool,
) -> tuple[TokenValues, Tensor | None]:
    """The softmax within the shard; leaves the probabilities at T, times slope and weight.

    Returns:
        Log-sum-exp at 1 and at T, and the probability outside the kept ids (0 without a tail), [C]
        each; and the probabilities at 1 as in `_chained_kernel`.
    """
    logits, slope = capped(raw_CV, cap)
    p, hot_C1 = softmax(logits / temperature, cap and cap / temperature)
    tail_C = torch.zeros_like(weight_C)
    if tail:
        tail_C = total(p.scatter(1, index_CK, torch.where(any_C1, 0.0, p.gather(1, index_CK))))
    scale = slope * weight_C[:, None]
    log_z_C1, cold_p = _cold(logits, hot_C1, cap, temperature, alpha, scale)
    raw_CV.copy_(p * scale)
    return (log_z_C1.squeeze(-1), hot_C1.squeeze(-1), tail_C), cold_p


def _cold(
    logits: Tensor,
    hot_C1: Tensor,
    cap: float | None,
    temperature: float,
    alpha: float,
    scale: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Log-sum-exp [C, 1] and probabilities at temperature 1, times `scale`.

    None instead of the probabilities where those at T are the same or none are needed.
    """
    if temperature == 1.0:
        return hot_C1, None
    p, log_z_C1 = softmax(logits, cap)
    return log_z_C1, p * scale if alpha else None


def _keep(part: slice, values: Sequence[Tensor | None], *buffers: Tensor | None) -> None:
    """Copies a tile's values into its rows of the chunk's buffers."""
    for value, buffer in zip(values, buffers, strict=True):
        if value is not None and buffer is not None:
            buffer[part] = value


def _combine(out_CV: Tensor, terms: list[tuple[Tensor, Tensor]]) -> None:
    """Replaces `out_CV` by the sum of factors [C, 1] times arrays [C, V], tile by tile."""
    for part, _ in tiles(slice(0, len(out_CV)), out_CV.shape[1]):
        products = [factor_C1[part] * x_CV[part] for factor_C1, x_CV in terms]
        out_CV[part] = sum(products[1:], products[0])


def _nll(log_z_C: Tensor, label_RC: Tensor, weight_C: Tensor) -> Tensor:
    """Negative log-likelihood of each label; one rank has the label's logit, the others 0."""
    return (log_z_C - label_RC.sum(0)).float() * weight_C
