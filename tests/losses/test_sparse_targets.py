"""Sparse targets: what is kept, and losses on it, against plain float64."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gemmule.errors import ConfigError
from gemmule.losses import chunked_head
from gemmule.losses.divergences import DistillationLoss, Divergence, Kind
from gemmule.losses.head import Head
from gemmule.losses.plain import plain_sparse_distillation
from gemmule.losses.soft_cap import soft_cap
from gemmule.losses.sparse_targets import (
    Choice,
    SparseTargets,
    joined,
    sample,
    top_k,
    top_k_with_tail,
    top_p,
)

CAPS = st.sampled_from([None, 2.0, 30.0])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probabilities(n: int, v: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return (spread * torch.randn(n, v, generator=generator(seed))).softmax(-1)


def dense(targets: SparseTargets, vocab: int) -> Tensor:
    """Weights by id [N, V], as float64."""
    weights = torch.zeros(len(targets), vocab, dtype=torch.float64)
    return weights.scatter_add_(1, targets.ids_NK, targets.weight_NK.double())


def problem(n: int, v: int, seed: int) -> dict[str, Tensor]:
    g = generator(seed)
    target = torch.randint(0, v, (n,), generator=g)
    target[torch.rand(n, generator=g) < 0.2] = -100
    return {
        "x": torch.randn(n, 7, generator=g),
        "w": torch.randn(v, 7, generator=g),
        "tx": torch.randn(n, 10, generator=g),
        "tw": torch.randn(v, 10, generator=g),
        "target": target,
        "weights": 2 * torch.rand(n, generator=g),
    }


CHOICES: dict[str, Choice] = {
    "sample": lambda p: sample(p, 5, generator=generator()),
    "tempered sample": lambda p: sample(p, 5, proposal=0.5, generator=generator()),
    "top_k": lambda p: top_k(p, min(3, p.shape[1])),
    "top_p": lambda p: top_p(p, 0.8),
    "tail": lambda p: top_k_with_tail(p, min(3, p.shape[1])),
    "tail of nothing": lambda p: top_k_with_tail(p, p.shape[1]),
}


def close(got: Tensor, expected: Tensor) -> None:
    """As in test_head.py."""
    error = (got.double() - expected).norm().item()
    assert error <= 1e-5 * expected.norm().item() + 2e-6


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 30), v=st.integers(2, 70), cap=CAPS, choice=st.sampled_from(sorted(CHOICES)),
    kind=st.sampled_from(["cross_entropy", "forward_kl"]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]), alpha=st.sampled_from([0.0, 0.3, 1.0]),
    spare=st.integers(0, 3), weighted=st.booleans(), tile=st.integers(1, 9),
    chunk=st.integers(1, 40), seed=st.integers(0, 999),
)  # fmt: skip
def test_losses(
    n: int, v: int, cap: float | None, choice: str, kind: Kind, temperature: float, alpha: float,
    spare: int, weighted: bool, tile: int, chunk: int, seed: int,
) -> None:  # fmt: skip
    p = problem(n, v + spare, seed)
    p["target"].clamp_(max=v - 1)
    teacher = Head(p["tw"], cap, v, chunk)
    targets = teacher.sparse_targets(p["tx"], CHOICES[choice], temperature=temperature)
    settings = DistillationLoss(Divergence(kind), temperature, alpha)
    weights = p["weights"] if weighted else None
    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    with mock.patch.object(chunked_head, "TILE_BYTES", 4 * v * tile):
        loss, hard = Head(w, cap, v, chunk).sparse_distillation(
            x, targets, p["target"], settings, weights_N=weights
        )
    x64, w64 = (p[k].double().requires_grad_() for k in ("x", "w"))
    plain, plain_hard = plain_sparse_distillation(
        Head(w64, cap, v), x64, targets, p["target"], settings, weights_N=weights
    )
    close(loss.detach(), plain.detach())
    close(hard, plain_hard)
    plain_grads = torch.autograd.grad(2.0 * plain, (x64, w64))
    for got, expected in zip(torch.autograd.grad(2.0 * loss, (x, w)), plain_grads, strict=True):
        close(got, expected)


@pytest.mark.parametrize("kind", ["cross_entropy", "forward_kl"])
@pytest.mark.parametrize(
    "choose",
    [lambda p: top_k(p, 40), lambda p: top_p(p, 1.0), lambda p: top_k_with_tail(p, 40)],
    ids=["top_k", "top_p", "tail"],
)
def test_all_ids_kept_is_the_whole_distribution(choose: Choice, kind: Kind) -> None:
    p = problem(25, 40, 0)
    teacher = Head(p["tw"], 30.0)
    targets = teacher.sparse_targets(p["tx"], choose, temperature=2.0)
    settings = DistillationLoss(Divergence(kind), 2.0, 0.2)
    results = []
    for sparse in (True, False):
        x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
        head = Head(w, 30.0)
        if sparse:
            loss, _ = head.sparse_distillation(x, targets, p["target"], settings)
        else:
            loss, _ = head.distillation(x, teacher, p["tx"], p["target"], settings)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, w))))
    for got, expected in zip(*results, strict=True):
        close(got, expected.double())


@pytest.mark.parametrize("proposal", [1.0, 0.6, 1.3])
def test_samples_give_the_full_loss_and_gradient_on_average(proposal: float) -> None:
    """The same token many times over; the mean must lie within its own error of the truth."""
    copies, v = 40_000, 12
    g = generator(7)
    student, teacher = (torch.randn(v, generator=g).double() for _ in range(2))
    p, q = student.softmax(-1), teacher.softmax(-1)
    targets = sample(q.float().expand(copies, v), 4, proposal=proposal, generator=g)
    weights = dense(targets, v)
    gradient = weights.sum(-1, keepdim=True) * p - weights
    loss = -(weights * student.log_softmax(-1)).sum(-1)
    for got, expected in ((gradient, p - q), (loss, -(q * student.log_softmax(-1)).sum())):
        error = got.std(0) / copies**0.5
        assert ((got.mean(0) - expected).abs() <= 4.5 * error).all()
        assert error.max() < 0.02  # sharp enough to see a bias
    # And the chunked loss forms just this gradient.
    x = student.float().expand(copies, v).clone().requires_grad_()
    labels = torch.zeros(copies, dtype=torch.long)
    sums, _ = Head(torch.eye(v)).sparse_distillation(x, targets, labels)
    close(torch.autograd.grad(sums, x)[0], gradient)
    close(sums.detach(), loss.sum())


def test_renormalized_samples_are_biased_and_steadier() -> None:
    q = probabilities(1, 12, 3).expand(40_000, 12)
    plain = sample(q, 4, proposal=0.5, generator=generator())
    renormalized = sample(q, 4, proposal=0.5, renormalize=True, generator=generator())
    assert torch.equal(plain.ids_NK, renormalized.ids_NK)
    close(renormalized.weight_NK.sum(-1), torch.ones(len(q), dtype=torch.float64))
    a, b = (dense(t, 12) for t in (plain, renormalized))
    most_likely = int(q[0].argmax())
    assert b.std(0)[most_likely] < a.std(0)[most_likely]
    error = b.std(0) / 200
    assert ((b.mean(0) - q[0]).abs() > 6 * error).any()


def test_samples_are_counted() -> None:
    p = probabilities(50, 6)
    targets = sample(p, 100, generator=generator())
    kept = targets.weight_NK > 0
    assert targets.ids_NK.shape[1] <= 6
    counts = targets.weight_NK * 100
    assert (counts - counts.round()).abs().max() < 1e-3
    close(targets.weight_NK.sum(-1), torch.ones(50, dtype=torch.float64))
    for ids, there in zip(targets.ids_NK, kept, strict=True):
        assert len(ids[there].unique()) == there.sum()
    again = sample(p, 100, generator=generator())
    assert torch.equal(again.ids_NK, targets.ids_NK)
    assert torch.equal(again.weight_NK, targets.weight_NK)


def test_ids_without_probability_are_never_drawn() -> None:
    p = probabilities(200, 10)
    p[:, [0, 4, 9]] = 0
    p = p / p.sum(-1, keepdim=True)
    assert not dense(sample(p, 50, generator=generator()), 10)[:, [0, 4, 9]].any()


def test_top_k() -> None:
    targets = top_k(torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.7, 0.1, 0.2, 0.0]]), 2)
    assert targets.ids_NK.tolist() == [[1, 3], [0, 2]]
    close(targets.weight_NK, torch.tensor([[2, 1], [7 / 3, 2 / 3]]).double() / 3)
    assert targets.tail_N is None


def test_top_p() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.7, 0.1, 0.2, 0.0]])
    targets = top_p(p, 0.69)
    assert targets.ids_NK.tolist() == [[1, 3], [0, 2]]
    close(targets.weight_NK, torch.tensor([[2 / 3, 1 / 3], [1, 0]]).double())
    assert top_p(p, 1e-9).ids_NK.tolist() == [[1], [0]]
    assert top_p(p, 1.0, max_ids=3).ids_NK.shape == (2, 3)
    assert dense(top_p(p, 1.0), 4).sum(-1).tolist() == pytest.approx([1, 1])


def test_top_k_with_tail() -> None:
    targets = top_k_with_tail(torch.tensor([[0.1, 0.5, 0.15, 0.25]]), 2)
    assert targets.ids_NK.tolist() == [[1, 3]]
    assert targets.weight_NK.tolist() == [[0.5, 0.25]]
    assert targets.tail_N is not None
    assert targets.tail_N.tolist() == [0.25]
    assert targets.entropy_N.item() == pytest.approx(1.0397208, abs=1e-6)  # 1.5 ln 2


def test_a_small_tail_keeps_its_digits() -> None:
    """The student's mass outside the kept ids is 1e-9 and less; the teacher's is not."""
    logits = torch.tensor([[20.0, 0.0, -1.0, -3.0, -2.0]])
    x = logits.clone().requires_grad_()
    targets = top_k_with_tail(torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1]]), 1)
    target = torch.zeros(1, dtype=torch.long)
    loss, _ = Head(torch.eye(5)).sparse_distillation(x, targets, target)
    x64 = logits.double().requires_grad_()
    plain, _ = plain_sparse_distillation(
        Head(torch.eye(5, dtype=torch.float64)), x64, targets, target
    )
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    (got,), (expected,) = torch.autograd.grad(loss, x), torch.autograd.grad(plain, x64)
    close(got, expected)


def test_targets_are_of_the_capped_and_tempered_teacher() -> None:
    p = problem(20, 30, 0)
    head = Head(p["tw"], 5.0, 28, chunk=7)
    targets = head.sparse_targets(p["tx"], lambda q: top_k(q, 28), temperature=2.0)
    logits = soft_cap(p["tx"].double() @ p["tw"][:28].double().T, 5.0)
    close(dense(targets, 28), (logits / 2).softmax(-1))
    assert targets.temperature == 2.0
    whole = (logits / 2).softmax(-1)
    close(targets.entropy_N, -(whole * whole.log()).sum(-1))
    sampled = Head(p["tw"], 5.0, 28).sparse_targets(
        p["tx"], lambda q: sample(q, 3), temperature=2.0
    )
    close(sampled.entropy_N, -(whole * whole.log()).sum(-1))


def test_ragged_parts_are_joined() -> None:
    p = probabilities(9, 30)
    parts = [top_p(p[:4], 0.5), top_p(p[4:], 0.95)]
    whole = joined(parts)
    assert len(whole) == 9
    assert torch.equal(dense(whole, 30), torch.cat([dense(part, 30) for part in parts]))


@pytest.mark.parametrize("kind", ["reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_other_divergences_are_refused(kind: Kind) -> None:
    p = problem(3, 5, 0)
    targets = top_k(probabilities(3, 5), 2)
    with pytest.raises(ConfigError, match=f"{kind} needs the teacher's whole distribution"):
        Head(p["w"]).sparse_distillation(
            p["x"], targets, p["target"], DistillationLoss(Divergence(kind))
        )


def test_targets_of_other_tokens_are_refused() -> None:
    p = problem(3, 5, 0)
    with pytest.raises(ConfigError, match="targets of 4 tokens and 3 tokens"):
        Head(p["w"]).sparse_distillation(p["x"], top_k(probabilities(4, 5), 2), p["target"])


def test_targets_of_another_temperature_are_refused() -> None:
    p = problem(3, 5, 0)
    targets = Head(p["tw"]).sparse_targets(p["tx"], lambda q: top_k(q, 2), temperature=2.0)
    with pytest.raises(ConfigError, match=r"targets have temperature 2.0 and the loss 1.0"):
        Head(p["w"]).sparse_distillation(p["x"], targets, p["target"])


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda p: top_k(p, 0), "cannot keep 0 ids of a vocabulary of 5"),
        (lambda p: top_k_with_tail(p, 6), "cannot keep 6 ids of a vocabulary of 5"),
        (lambda p: top_p(p, 0.0), "p = 0.0 is not a probability to reach"),
        (lambda p: sample(p, 0), "cannot sample 0 draws"),
        (lambda p: sample(p, 8, proposal=-1.0), "a power above 0"),
    ],
)
def test_impossible_choices_are_refused(choose: Choice, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(probabilities(2, 5))


@pytest.mark.usefixtures("compiler")
def test_compiled_kernels_equal_plain_ones() -> None:
    p = problem(64, 128, 0)
    for choose in (CHOICES["sample"], CHOICES["tail"]):
        targets = Head(p["tw"], 30.0).sparse_targets(p["tx"], choose)
        results = []
        for compiled in (False, True):
            x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
            loss, _ = Head(w, 30.0).sparse_distillation(x, targets, p["target"], compiled=compiled)
            results.append((loss.detach(), *torch.autograd.grad(loss, (x, w))))
        for plain, got in zip(*results, strict=True):
            close(got, plain.double())


def test_never_holds_the_whole_batch_of_logits() -> None:
    """From the teacher's hidden states to the student's gradients."""
    n, v, chunk = 512, 300, 64
    p = problem(n, v, 0)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, Tensor):
                    largest = max(largest, t.numel())
            return out

    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    with Watch():
        targets = Head(p["tw"], 30.0, chunk=chunk).sparse_targets(p["tx"], CHOICES["tail"])
        loss, _ = Head(w, 30.0, chunk=chunk).sparse_distillation(x, targets, p["target"])
        loss.backward()
    assert largest == chunk * v
