"""The losses of head.py on whole logits, with autograd: to read, and to compare with.

They hold several tensors [tokens, vocabulary] and work in the dtype of their inputs; in float64
they are the tests' reference. Arguments, sums and results are those of head.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.losses.divergences import DistillationLoss, Divergence
from gemmule.losses.head import REPORT, Head
from gemmule.losses.labels import IGNORED
from gemmule.losses.soft_cap import soft_cap
from gemmule.losses.sparse_targets import SparseTargets


def plain_distillation(
    head: Head,
    x_ND: Tensor,
    teacher: Head,
    teacher_x_ND: Tensor,
    labels_N: Tensor,
    loss: DistillationLoss = REPORT,
    *,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`Head.distillation` of `head`."""
    logits_NV = _logits(head, x_ND)
    with torch.no_grad():
        log_q_NV = (_logits(teacher, teacher_x_ND) / loss.temperature).log_softmax(-1)
    log_p_NV = (logits_NV / loss.temperature).log_softmax(-1)
    soft_N = _divergence(loss.divergence, log_p_NV, log_q_NV)
    return _mixed(logits_NV, soft_N, labels_N, weights_N, loss)


def plain_sparse_distillation(
    head: Head,
    x_ND: Tensor,
    targets: SparseTargets,
    labels_N: Tensor,
    loss: DistillationLoss = REPORT,
    *,
    weights_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`Head.sparse_distillation` of `head`."""
    logits_NV = _logits(head, x_ND)
    log_p_NV = (logits_NV / loss.temperature).log_softmax(-1)
    weight_NK = targets.weight_NK.to(x_ND.dtype)
    soft_N = -(weight_NK * log_p_NV.gather(1, targets.ids_NK)).sum(-1)
    if targets.tail_N is not None:
        kept_NV = torch.zeros_like(log_p_NV, dtype=torch.bool)
        kept_NV.scatter_(1, targets.rows(slice(None))[0], True)
        tail_log_p_N = log_p_NV.masked_fill(kept_NV, -torch.inf).logsumexp(-1)
        soft_N = soft_N - torch.where(
            targets.tail_N > 0, targets.tail_N.to(x_ND.dtype) * tail_log_p_N, 0.0
        )
    if loss.divergence.kind == "forward_kl":
        soft_N = soft_N - targets.entropy_N
    return _mixed(logits_NV, soft_N, labels_N, weights_N, loss)


def _logits(head: Head, x_ND: Tensor) -> Tensor:
    return soft_cap(x_ND @ head.real_VD.T, head.cap)


def _divergence(divergence: Divergence, log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """The divergence of each token, by the formulas in divergences.py."""
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()

    def log_mixture(q_fraction: float) -> Tensor:
        return (q_fraction * q_NV + (1.0 - q_fraction) * p_NV).log()

    def kl(a_NV: Tensor, log_a_NV: Tensor, log_b_NV: Tensor) -> Tensor:
        return (a_NV * (log_a_NV - log_b_NV)).sum(-1)

    beta, skew = divergence.beta, divergence.skew
    match divergence.kind:
        case "cross_entropy":
            return -(q_NV * log_p_NV).sum(-1)
        case "forward_kl":
            return kl(q_NV, log_q_NV, log_p_NV)
        case "reverse_kl":
            return kl(p_NV, log_p_NV, log_q_NV)
        case "jsd":
            log_m_NV = log_mixture(beta)
            of_q_N, of_p_N = kl(q_NV, log_q_NV, log_m_NV), kl(p_NV, log_p_NV, log_m_NV)
            return beta * of_q_N + (1.0 - beta) * of_p_N
        case "skew_kl":
            return kl(q_NV, log_q_NV, log_mixture(skew))
        case "skew_reverse_kl":
            return kl(p_NV, log_p_NV, log_mixture(1.0 - skew))


def _mixed(
    logits_NV: Tensor,
    soft_N: Tensor,
    labels_N: Tensor,
    weights_N: Tensor | None,
    loss: DistillationLoss,
) -> tuple[Tensor, Tensor]:
    """Soft and next-token loss, weighted and summed."""
    nll_N = F.cross_entropy(logits_NV, labels_N, reduction="none", ignore_index=IGNORED)
    count_N = (labels_N != IGNORED).to(logits_NV.dtype)
    if weights_N is not None:
        count_N = count_N * weights_N
    hard = (nll_N * count_N).sum()
    soft = (soft_N * count_N).sum()
    return (1.0 - loss.alpha) * loss.temperature**2 * soft + loss.alpha * hard, hard.detach()
