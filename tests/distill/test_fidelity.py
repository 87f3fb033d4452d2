"""Gaps between kept targets and the whole distribution, against autograd and repeated draws."""

import pytest
import torch
from torch import Tensor

from gemmule.distill.fidelity import distance, truncation
from gemmule.distill.plain import plain_sparse_distillation
from gemmule.distill.spec import TargetSpec
from gemmule.distill.targets import SparseTargets, joined

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
            x,
            torch.eye(VOCAB, dtype=torch.float64),
            targets.part(slice(i, i + 1)),
            torch.zeros(1, dtype=torch.long),
            cap=None,
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


@pytest.mark.parametrize("proposal", [1.0, 0.6])
def test_samples_have_noise_and_no_bias(proposal: float) -> None:
    p_CV, logits_CV = distributions(1, 2)
    q_CV = logits_CV.softmax(-1)
    spec = TargetSpec(draws=8, proposal=proposal)
    times = 3000
    found = [spec.choice(0, i)(p_CV) for i in range(times)]
    gap = truncation(
        joined(found), p_CV.repeat(times, 1), q_CV.repeat(times, 1), draws=8, proposal=proposal
    )

    def mean(values: Tensor) -> tuple[Tensor, Tensor]:
        by = values.view(times, 2)
        return by.mean(0), 4 * by.std(0) / times**0.5

    for values in (gap.loss_C, gap.bias2_C):
        middle, half = mean(values)
        assert (middle.abs() <= half).all()
    total = mean(gap.bias2_C + gap.noise2_C)[0]
    torch.testing.assert_close(mean(gap.noise2_C)[0], total, rtol=0.1, atol=0)


def test_another_teachers_samples_show_a_bias() -> None:
    p_CV, other = distributions(2, 4)
    spec = TargetSpec(draws=20)
    times = 400
    found = joined([spec.choice(0, i)(other.softmax(-1)) for i in range(times)])
    gap = truncation(found, p_CV.repeat(times, 1), p_CV.repeat(times, 1), draws=20)
    true = ((p_CV - other.softmax(-1)) ** 2).sum(-1)
    torch.testing.assert_close(gap.bias2_C.view(times, 4).mean(0), true, rtol=0.1, atol=0.003)


def test_a_single_draw_says_nothing_of_bias() -> None:
    p_CV, _ = distributions(3)
    gap = truncation(TargetSpec(draws=1).choice(0, 0)(p_CV), p_CV, p_CV, draws=1)
    assert gap.bias2_C.isnan().all()


def test_distance() -> None:
    p_CV, _ = distributions(4)
    spec = TargetSpec(kind="top_k_tail", k=5)
    one = spec.choice(0, 0)(p_CV)
    assert distance(one, one, VOCAB).max() == 0
    other = spec.choice(0, 0)(p_CV.flip(0))
    assert ((distance(one, other, VOCAB) > 0.05) & (distance(one, other, VOCAB) <= 1)).all()
