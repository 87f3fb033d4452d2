"""The losses of losses.py on whole logits, with autograd: to read, and to compare with.

They hold [tokens, vocabulary] many times over and work in the dtype that they are given; in
float64 they are what the tests take for true. Arguments, sums and results as in losses.py.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.losses.divergences import CROSS_ENTROPY, Divergence
from gemmule.losses.linear import IGNORED
from gemmule.losses.soft_cap import soft_cap
from gemmule.losses.sparse_targets import SparseTargets


def plain_distillation(
    x_ND: Tensor,
    weight_VD: Tensor,
    teacher_x_ND: Tensor,
    teacher_weight_VD: Tensor,
    target_N: Tensor,
    *,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float = 1.0,
    alpha: float = 0.0,
    divergence: Divergence = CROSS_ENTROPY,
    token_weight_N: Tensor | None = None,
    vocab: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As linear_distillation."""
    logits_NV = soft_cap(x_ND @ _real(weight_VD, vocab).T, cap)
    with torch.no_grad():
        teacher_NV = soft_cap(teacher_x_ND @ _real(teacher_weight_VD, vocab).T, teacher_cap)
        log_q_NV = (teacher_NV / temperature).log_softmax(-1)
    soft_N = _divergence(divergence, (logits_NV / temperature).log_softmax(-1), log_q_NV)
    return _mixed(logits_NV, soft_N, target_N, token_weight_N, temperature, alpha)


def plain_sparse_distillation(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: SparseTargets,
    target_N: Tensor,
    *,
    cap: float | None,
    alpha: float = 0.0,
    divergence: Divergence = CROSS_ENTROPY,
    token_weight_N: Tensor | None = None,
    vocab: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As linear_sparse_distillation."""
    logits_NV = soft_cap(x_ND @ _real(weight_VD, vocab).T, cap)
    log_p_NV = (logits_NV / targets.temperature).log_softmax(-1)
    weight_NK = targets.weight_NK.to(x_ND.dtype)
    soft_N = -(weight_NK * log_p_NV.gather(1, targets.ids_NK)).sum(-1)
    if targets.tail_N is not None:
        kept_NV = torch.zeros_like(log_p_NV, dtype=torch.bool)
        kept_NV.scatter_(1, targets.rows(slice(None))[0], True)
        tail_log_p_N = log_p_NV.masked_fill(kept_NV, -torch.inf).logsumexp(-1)
        soft_N = soft_N - torch.where(
            targets.tail_N > 0, targets.tail_N.to(x_ND.dtype) * tail_log_p_N, 0.0
        )
    if divergence.kind == "forward_kl":
        soft_N = soft_N - targets.entropy_N
    return _mixed(logits_NV, soft_N, target_N, token_weight_N, targets.temperature, alpha)


def _real(weight_VD: Tensor, vocab: int | None) -> Tensor:
    """Without padding; not even sliced where there is none, for that copies the gradient."""
    return weight_VD if vocab is None else weight_VD[:vocab]


def _divergence(divergence: Divergence, log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Of the table in divergences.py, for each token."""
    p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()

    def log_mixture(share_of_q: float) -> Tensor:
        return (share_of_q * q_NV + (1.0 - share_of_q) * p_NV).log()

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
    target_N: Tensor,
    token_weight_N: Tensor | None,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor]:
    """Soft and hard loss, weighted and summed."""
    nll_N = F.cross_entropy(logits_NV, target_N, reduction="none", ignore_index=IGNORED)
    count_N = (target_N != IGNORED).to(logits_NV.dtype)
    if token_weight_N is not None:
        count_N = count_N * token_weight_N
    hard = (nll_N * count_N).sum()
    return (1.0 - alpha) * temperature**2 * (soft_N * count_N).sum() + alpha * hard, hard.detach()
