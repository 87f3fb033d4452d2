"""Span likelihoods and their loss against float64 versions on whole logits."""

import math

import pytest
import torch
from torch import Tensor

from gemmule.losses.head import Head
from gemmule.losses.labels import IGNORED
from gemmule.losses.soft_cap import soft_cap
from gemmule.losses.span_likelihood import NO_SPAN, span_log_likelihoods, span_matching

N, D, V, SPANS = 45, 16, 70, 9


def plain_log_likelihoods(x: Tensor, weight: Tensor, target: Tensor, cap: float | None) -> Tensor:
    log_p = soft_cap(x @ weight.T, cap).log_softmax(-1)
    return log_p.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target != IGNORED)


def plain_matching(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    p, q = (teacher / temperature).exp(), (student / temperature).exp()
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    return temperature * kl.sum()


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=g, dtype=torch.float64)
    weight = torch.randn(V, D, generator=g, dtype=torch.float64)
    target = torch.randint(0, V, (N,), generator=g)
    target[3:6] = IGNORED
    span = torch.randint(NO_SPAN, SPANS, (N,), generator=g)
    span[target == IGNORED] = NO_SPAN
    teacher = -torch.rand(SPANS, generator=g, dtype=torch.float64) * 30 - 0.01
    return x, weight, target, span, teacher


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 5.0, 100.0])
@pytest.mark.parametrize(("vocab", "chunk"), [(None, None), (61, 7)])
def test_loss_and_gradients(
    cap: float | None, temperature: float, vocab: int | None, chunk: int | None
) -> None:
    x, weight, target, span, teacher = inputs(0)
    target = torch.where(target >= (vocab or V), 5, target)
    results = []
    for dtype in (torch.float64, torch.float32):
        x_ = x.to(dtype).clone().requires_grad_()
        weight_ = weight.to(dtype).clone().requires_grad_()
        if dtype == torch.float64:
            log_p = plain_log_likelihoods(x_, weight_[:vocab], target, cap)
            sums = torch.stack([log_p[span == s].sum() for s in range(SPANS)])
            loss = plain_matching(sums, teacher, temperature)
        else:
            log_p = Head(weight_, cap, vocab, chunk).log_likelihoods(x_, target)
            loss = span_matching(span_log_likelihoods(log_p, span, SPANS), teacher, temperature)
        (0.7 * loss - 0.3 * log_p.sum()).backward()
        results.append((log_p.detach(), loss.detach(), x_.grad, weight_.grad))
    for mine, true in zip(results[1], results[0], strict=True):
        assert mine is not None
        assert true is not None
        error = (mine.double() - true).norm() / true.norm()
        assert error < 2e-5


def test_nothing_to_learn_where_both_agree() -> None:
    same = torch.tensor([-0.5, -12.0, -80.0], dtype=torch.float64, requires_grad=True)
    loss = span_matching(same, same.detach(), 100.0)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert same.grad is not None
    assert same.grad.abs().max() < 1e-9


def test_a_large_temperature_compares_log_likelihoods() -> None:
    a, b = 12.0, 3.0
    loss = span_matching(torch.tensor([-b]), torch.tensor([-a]), 1e6)
    assert loss.item() == pytest.approx(a * math.log(a / b) - a + b, rel=1e-3)


def test_certain_events_stay_finite() -> None:
    student = torch.tensor([0.0, -1e-12, -500.0, 0.0], requires_grad=True)
    teacher = torch.tensor([0.0, -3.0, 0.0, -700.0])
    loss = span_matching(student, teacher, 1.0)
    loss.backward()
    assert bool(loss.isfinite())
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())


def test_the_head_alone_and_the_states_alone() -> None:
    x, weight, target, *_ = (t.float() if t.is_floating_point() else t for t in inputs(1))
    both = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    Head(both[1]).log_likelihoods(both[0], target).sum().backward()
    for i in range(2):
        one = [x.clone(), weight.clone()]
        one[i].requires_grad_()
        Head(one[1]).log_likelihoods(one[0], target).sum().backward()
        torch.testing.assert_close(one[i].grad, both[i].grad)
        assert one[1 - i].grad is None
