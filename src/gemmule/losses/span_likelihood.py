"""Learning from a teacher that cuts text otherwise: by the likelihoods of spans of bytes.

A span is the shortest run of bytes at whose ends both cut. Each model gives it a likelihood, the
product of its tokens' own; whether it comes or not is an event, and the student is to give it the
teacher's probability (Approximate Likelihood Matching, arXiv 2503.20083, its binarised KL
divergence, without its correction for what a cut itself gives away).

The alternative, universal logit distillation (arXiv 2402.12030), compares sorted probabilities
and so forgets which piece is which; it serves only beside a next-token loss.

Shapes: N tokens of the student, M of the teacher, S spans.
"""

import torch
from torch import Tensor

NO_SPAN = -1
_SUREST = -1e-9  # log-likelihood over temperature: beyond, an event is certain


def span_log_likelihoods(log_p_N: Tensor, span_N: Tensor, spans: int) -> Tensor:
    """Sums of tokens' log-likelihoods by span [S], float64; tokens of NO_SPAN count nowhere."""
    some_N = span_N != NO_SPAN
    sums_S = torch.zeros(spans, dtype=torch.float64, device=log_p_N.device)
    return sums_S.index_add(0, span_N[some_N], log_p_N[some_N].double())


def span_matching(student_S: Tensor, teacher_S: Tensor, temperature: float) -> Tensor:
    """T times the KL divergence between events of probabilities p^(1/T), summed over spans.

    Long spans are unlikely to both models, and at T = 1 hardly count. At a large T the loss of a
    span tends to a log(a / b) - a + b, where a and b are minus the log-likelihoods: a comparison
    of those whatever their size.

    Args:
        student_S: log-likelihoods of spans, nats; the gradient flows here.
        teacher_S: the teacher's.
        temperature: T; the paper's code takes 100.
    """
    log_p_S = (teacher_S.detach().double() / temperature).clamp(max=_SUREST)
    log_q_S = (student_S.double() / temperature).clamp(max=_SUREST)
    p_S, not_p_S = log_p_S.exp(), -torch.expm1(log_p_S)
    log_not_q_S = torch.log(-torch.expm1(log_q_S))
    kl_S = p_S * (log_p_S - log_q_S) + not_p_S * (not_p_S.log() - log_not_q_S)
    return temperature * kl_S.sum().float()
