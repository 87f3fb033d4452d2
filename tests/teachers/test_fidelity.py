"""Gaps between kept targets and the whole distribution, against autograd and repeated draws."""

import pytest
import torch
from torch import Tensor

from gemmule.losses.head import Head
from gemmule.losses.plain import plain_sparse_distillation
from gemmule.losses.sparse_targets import SparseTargets, joined
from gemmule.teachers.fidelity import dense, distance, truncation
from gemmule.teachers.target_spec import TargetSpec

VOCAB = 23


def distributions(seed: int, tokens: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(tokens, VOCAB, generator=g, dtype=torch.float64)).softmax(-1), (
        2 * torch.randn(tokens, VOCAB, generator=g, dtype=torch.float64)
    )


def gradients(targets: SparseTargets, logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """Forward KL by the targets of each token, and its gradient for the logits, by autograd."""
    values, grads = [], []
    for i in range(len(logits_CV)):
        x = logits_CV[i : i + 1].clone().requires_grad_()
        loss, _ = plain_sparse_distillation(
            Head(torch.eye(VOCAB, dtype=torch.float64)),
            x,
            targets.part(slice(i, i + 1)),
            torch.zeros(1, dtype=torch.long),
        )
        loss.backward()
        assert x.grad is not None
        values.append(loss.detach() - targets.entropy_N[i])
        grads.append(x.grad[0])
    return torch.stack(values), torch.stack(grads)


@pytest.mark.parametrize(
    "spec",
    [
        TargetSpec(kind="top_k", k=4),
        TargetSpec(kind="top_k_tail", k=4),
        TargetSpec(kind="top_p", p=0.8),
    ],
    ids=lambda s: s.label,
)
def test_equals_autograd(spec: TargetSpec) -> None:
    p_CV, logits_CV = distributions(0)
    q_CV = logits_CV.softmax(-1)
    targets = spec.for_vocabulary(VOCAB).choice(0, 0)(p_CV)
    gap = truncation(targets, p_CV, q_CV)
    loss, grad = gradients(targets, logits_CV)
    full = (p_CV * (p_CV / q_CV).log()).sum(-1)
    torch.testing.assert_close(gap.loss_C, loss - full, rtol=1e-5, atol=1e-6)
    off = grad - (q_CV - p_CV)
    torch.testing.assert_close(gap.bias2_C, (off**2).sum(-1), rtol=1e-5, atol=1e-7)
    assert gap.noise2_C.abs().max() == 0
    torch.testing.assert_close(gap.full2_C, ((q_CV - p_CV) ** 2).sum(-1))


@pytest.mark.parametrize("spread", ["systematic", "independent"])
@pytest.mark.parametrize("proposal", [1.0, 0.6])
def test_samples_have_noise_and_no_bias(proposal: float, spread: str) -> None:
    p_CV, logits_CV = distributions(1, 2)
    times = 3000
    many_p, many_q = p_CV.repeat(times, 1), logits_CV.softmax(-1).repeat(times, 1)
    spec = TargetSpec.parse({"draws": 8, "proposal": proposal, "spread": spread})
    first, *others = (joined([spec.choice(s, i)(p_CV) for i in range(times)]) for s in range(3))
    gap = truncation(first, many_p, many_q, others)
    for values in (gap.loss_C, gap.bias2_C):
        by = values.view(times, 2)
        assert (by.mean(0).abs() <= 4 * by.std(0) / times**0.5).all()
    if spread == "independent" and proposal == 1.0:
        expected = (1 - (p_CV**2).sum(-1)) / 8  # of a multinomial
        torch.testing.assert_close(gap.noise2_C.view(times, 2).mean(0), expected, rtol=0.1, atol=0)
    if spread == "systematic" and proposal == 1.0:
        part = (8 * p_CV) % 1
        expected = (part * (1 - part)).sum(-1) / 64  # counts are rounded up or down
        torch.testing.assert_close(gap.noise2_C.view(times, 2).mean(0), expected, rtol=0.1, atol=0)


def test_another_teachers_samples_show_a_bias() -> None:
    p_CV, other = distributions(2, 4)
    times = 400
    many = p_CV.repeat(times, 1)
    spec = TargetSpec(draws=20, spread="independent")
    targets = joined([spec.choice(0, i)(other.softmax(-1)) for i in range(times)])
    gap = truncation(targets, many, many, [spec.choice(1, 0)(many)])
    true = ((p_CV - other.softmax(-1)) ** 2).sum(-1)
    torch.testing.assert_close(gap.bias2_C.view(times, 4).mean(0), true, rtol=0.1, atol=0.01)


def test_systematic_counts_are_shares_rounded_up_or_down() -> None:
    p_CV, _ = distributions(5, 40)
    for draws in (1, 7, 50):
        targets = TargetSpec(draws=draws).choice(0, 0)(p_CV)
        counts = dense(targets, VOCAB) * draws
        assert (counts >= (draws * p_CV - 1e-9).floor() - 1e-6).all()
        assert (counts <= (draws * p_CV + 1e-9).ceil() + 1e-6).all()
        torch.testing.assert_close(counts.sum(-1), torch.full((40,), float(draws)).double())


def test_distance() -> None:
    p_CV, _ = distributions(4)
    spec = TargetSpec(kind="top_k_tail", k=5)
    one = spec.choice(0, 0)(p_CV)
    assert distance(one, one, VOCAB).max() == 0
    other = spec.choice(0, 0)(p_CV.flip(0))
    assert ((distance(one, other, VOCAB) > 0.05) & (distance(one, other, VOCAB) <= 1)).all()
