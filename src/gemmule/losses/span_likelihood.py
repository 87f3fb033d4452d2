"""Distillation from a teacher with another tokenizer, by the likelihoods of spans of bytes.

A span is a shortest run of bytes that starts and ends at a token boundary of both tokenizers. Each
model gives it a likelihood, the product of its tokens' likelihoods. Whether the span comes next is
an event, to which the student learns to give the teacher's probability: Approximate Likelihood
Matching (arXiv 2503.20083) with its binarized KL divergence.

A boundary reveals something of what follows, and not the same to both. The paper multiplies a
span's likelihood by the probability that the next token begins with a space. `joined_with_spaces`
also divides by that of the cut before the span, where both have a boundary before every space: then
both likelihoods are the probability of the same bytes, given the text before and that a space comes
next, exactly (tests/losses/test_span_likelihood.py sums over all texts of a small language).

The alternative, universal logit distillation (arXiv 2402.12030), compares sorted probabilities and
so loses which token is which; it is of use only in addition to a next-token loss.

Shapes: N tokens of the student, M of the teacher, S spans, C cuts.
"""

import torch
from torch import Tensor

NO_SPAN = -1
_LARGEST_LOG_P = -1e-9  # log-likelihood over temperature: above it an event counts as certain


def span_log_likelihoods(log_p_N: Tensor, span_N: Tensor, spans: int) -> Tensor:
    """Log-likelihood of each span, float64 [S]: the sum over its tokens.

    Args:
        log_p_N: log-likelihoods of the tokens, nats.
        span_N: span of each token, or NO_SPAN for a token that counts nowhere.
        spans: number of spans, S.
    """
    in_span_N = span_N != NO_SPAN
    sums_S = torch.zeros(spans, dtype=torch.float64, device=log_p_N.device)
    return sums_S.index_add(0, span_N[in_span_N], log_p_N[in_span_N].double())


def joined_with_spaces(
    likelihood_S: Tensor, log_space_C: Tensor, ending_C: Tensor, starting_C: Tensor
) -> Tensor:
    """Log-likelihoods of spans with the space after each, given the one that each starts with.

    Args:
        likelihood_S: log-likelihood of each span's tokens, nats.
        log_space_C: at each cut, the log-probability that the next token begins with a space.
        ending_C: span that ends at the cut, or NO_SPAN.
        starting_C: span that starts there, or NO_SPAN.
    """
    spans = len(likelihood_S)
    after_S = span_log_likelihoods(log_space_C, ending_C, spans)
    return likelihood_S + after_S - span_log_likelihoods(log_space_C, starting_C, spans)


def span_matching(student_S: Tensor, teacher_S: Tensor, temperature: float) -> Tensor:
    """T times the KL divergence between events of probability p^(1/T), summed over spans.

    Both models give long spans a low probability, so at T = 1 these hardly count. At large T the
    loss of a span tends to a log(a / b) - a + b, where a and b are the negative log-likelihoods: a
    comparison that does not depend on their size.

    Args:
        student_S: the student's log-likelihoods of the spans, nats; they get the gradient.
        teacher_S: the teacher's log-likelihoods.
        temperature: T; the paper's code uses 100.
    """
    log_p_S = (teacher_S.detach().double() / temperature).clamp(max=_LARGEST_LOG_P)
    log_q_S = (student_S.double() / temperature).clamp(max=_LARGEST_LOG_P)
    p_S, not_p_S = log_p_S.exp(), -torch.expm1(log_p_S)
    log_not_q_S = torch.log(-torch.expm1(log_q_S))
    kl_S = p_S * (log_p_S - log_q_S) + not_p_S * (not_p_S.log() - log_not_q_S)
    return temperature * kl_S.sum().float()
