"""The chunked losses against the plain ones in float64."""

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gemmule.errors import ConfigError
from gemmule.losses import chunked_head
from gemmule.losses.chunked_head import chunk_size
from gemmule.losses.divergences import CROSS_ENTROPY, KINDS, DistillationLoss, Divergence, Kind
from gemmule.losses.head import Head
from gemmule.losses.plain import plain_distillation
from gemmule.losses.soft_cap import soft_cap

CAPS = st.sampled_from([None, 2.0, 30.0])


def problem(n: int, d: int, v: int, seed: int, padding: int = 0) -> dict[str, Tensor]:
    """Student and teacher of different widths; heads with different numbers of padding rows."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, v, (n,), generator=g)
    target[torch.rand(n, generator=g) < 0.2] = -100
    return {
        "x": torch.randn(n, d, generator=g),
        "w": torch.randn(v + padding, d, generator=g),
        "tx": torch.randn(n, d + 3, generator=g),
        "tw": torch.randn(v + 2 * padding, d + 3, generator=g),
        "target": target,
        "weights": 2 * torch.rand(n, generator=g),
    }


def arranged(
    w: Tensor, tw: Tensor, *, cap: float | None, teacher_cap: float | None,
    vocab: int | None = None, chunk: int | None = None, temperature: float = 1.0,
    alpha: float = 0.0, divergence: Divergence = CROSS_ENTROPY,
) -> tuple[Head, Head, DistillationLoss]:  # fmt: skip
    return (
        Head(w, cap, vocab, chunk),
        Head(tw, teacher_cap, vocab),
        DistillationLoss(divergence, temperature, alpha),
    )


def distill(
    x: Tensor, w: Tensor, tx: Tensor, tw: Tensor, target: Tensor, *,
    weights: Tensor | None = None, compiled: bool = False, **settings: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    student, teacher, loss = arranged(w, tw, **settings)
    return student.distillation(x, teacher, tx, target, loss, weights_N=weights, compiled=compiled)


def plain_distill(
    x: Tensor, w: Tensor, tx: Tensor, tw: Tensor, target: Tensor, *,
    weights: Tensor | None = None, **settings: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    student, teacher, loss = arranged(w, tw, **settings)
    return plain_distillation(student, x, teacher, tx, target, loss, weights_N=weights)


def grads(loss: Tensor, *wrt: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, wrt))


def close(got: Tensor, expected: Tensor) -> None:
    """Relative error 1e-5; the absolute part is what fp32 leaves of 1 - p when p is nearly 1."""
    error = (got.double() - expected).norm().item()
    assert error <= 1e-5 * expected.norm().item() + 5e-6


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40), v=st.integers(2, 70), cap=CAPS, chunk=st.integers(1, 50),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_cross_entropy(n: int, v: int, cap: float | None, chunk: int, seed: int) -> None:
    p = problem(n, 7, v, seed)
    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    loss = Head(w, cap, chunk=chunk).cross_entropy(x, p["target"])
    x64, w64 = (p[k].double().requires_grad_() for k in ("x", "w"))
    plain = F.cross_entropy(soft_cap(x64 @ w64.T, cap), p["target"], reduction="sum")
    close(loss.detach(), plain.detach())
    for got, expected in zip(grads(3.0 * loss, x, w), grads(3.0 * plain, x64, w64), strict=True):
        close(got, expected)


@settings(max_examples=120, deadline=None)
@given(
    n=st.integers(1, 40), v=st.integers(2, 70), cap=CAPS, teacher_cap=CAPS,
    temperature=st.sampled_from([0.5, 1.0, 3.0]), alpha=st.sampled_from([0.0, 0.3, 1.0]),
    kind=st.sampled_from(KINDS), mix=st.sampled_from([0.1, 0.5, 0.8]), padding=st.integers(0, 5),
    weighted=st.booleans(), tile=st.integers(1, 9), chunk=st.integers(1, 50),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_distillation(
    n: int, v: int, cap: float | None, teacher_cap: float | None, temperature: float,
    alpha: float, kind: Kind, mix: float, padding: int, weighted: bool, tile: int, chunk: int,
    seed: int,
) -> None:  # fmt: skip
    p = problem(n, 7, v, seed, padding)
    divergence = Divergence(kind, beta=mix, skew=mix)
    common: dict[str, Any] = {
        "cap": cap, "teacher_cap": teacher_cap, "temperature": temperature, "alpha": alpha,
        "divergence": divergence, "vocab": v if padding else None,
        "weights": p["weights"] if weighted else None,
    }  # fmt: skip
    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    with mock.patch.object(chunked_head, "TILE_BYTES", 4 * v * tile):
        loss, hard = distill(x, w, p["tx"], p["tw"], p["target"], **common, chunk=chunk)
    x64, w64, tx64, tw64 = (p[k].double().requires_grad_() for k in ("x", "w", "tx", "tw"))
    plain, plain_hard = plain_distill(x64, w64, tx64, tw64, p["target"], **common)
    close(loss.detach(), plain.detach())
    close(hard, plain_hard)
    for got, expected in zip(grads(2.0 * loss, x, w), grads(2.0 * plain, x64, w64), strict=True):
        close(got, expected)
    assert not got[v:].any()  # the head's


def test_plain_cross_entropy_is_written_out_once_more() -> None:
    """An independent check of the plain version, which is the reference of all other tests."""
    p = {k: t.double() if t.is_floating_point() else t for k, t in problem(30, 7, 50, 3).items()}
    logits = soft_cap(p["x"] @ p["w"].T, 5.0)
    teacher = soft_cap(p["tx"] @ p["tw"].T, 3.0)
    keep = p["target"] != -100
    q = (teacher / 2).softmax(-1)
    soft = -(q * (logits / 2).log_softmax(-1)).sum(-1)[keep].sum()
    nll = F.cross_entropy(logits, p["target"], reduction="sum")
    got, hard = plain_distill(
        p["x"], p["w"], p["tx"], p["tw"], p["target"], cap=5.0, teacher_cap=3.0, temperature=2.0,
        alpha=0.3,
    )  # fmt: skip
    assert got.item() == pytest.approx((0.7 * 4 * soft + 0.3 * nll).item(), rel=1e-12)
    assert hard.item() == pytest.approx(nll.item(), rel=1e-12)


def soft_loss(p: dict[str, Tensor], divergence: Divergence) -> float:
    loss, _ = distill(
        p["x"], p["w"], p["tx"], p["tw"], p["target"], cap=30.0, teacher_cap=30.0,
        divergence=divergence,
    )  # fmt: skip
    return loss.item()


def test_divergences_relate_as_they_should() -> None:
    p = problem(200, 7, 60, 1)
    p["w"], p["tw"] = 0.3 * p["w"], 0.3 * p["tw"]  # ratios of probabilities stay moderate
    swapped = {**p, "x": p["tx"], "w": p["tw"], "tx": p["x"], "tw": p["w"]}
    forward, reverse = (soft_loss(p, Divergence(k)) for k in ("forward_kl", "reverse_kl"))
    assert soft_loss(swapped, Divergence("reverse_kl")) == pytest.approx(forward, rel=1e-5)
    jsd = soft_loss(p, Divergence("jsd", beta=0.3))
    assert soft_loss(swapped, Divergence("jsd", beta=0.7)) == pytest.approx(jsd, rel=1e-5)
    kept = (p["target"] != -100).sum().item()
    assert 0 < soft_loss(p, Divergence("jsd")) < kept * math.log(2)
    small = 1e-4  # towards its ends, each becomes one of the two
    near = Divergence("jsd", beta=small), Divergence("skew_kl", skew=small)
    assert soft_loss(p, near[0]) / small == pytest.approx(forward, rel=0.02)
    assert soft_loss(p, near[1]) == pytest.approx(forward, rel=0.01)
    skewed = soft_loss(p, Divergence("skew_reverse_kl", skew=small))
    assert skewed == pytest.approx(reverse, rel=0.01)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "cross_entropy"])
def test_nothing_is_lost_on_oneself(kind: Kind) -> None:
    p = problem(40, 7, 50, 2)
    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    loss, _ = distill(
        x, w, p["x"], p["w"], p["target"], cap=30.0, teacher_cap=30.0, divergence=Divergence(kind)
    )
    assert abs(loss.item()) < 1e-5 * len(p["x"])
    for got in grads(loss, x, w):
        assert got.abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_too_small_for_fp32(kind: Kind) -> None:
    """Uncapped logits hundreds apart: finite, and right where it is large."""
    p = problem(20, 7, 50, 4)
    p["w"], p["tw"] = p["w"] * 60, p["tw"] * 60
    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    common: dict[str, Any] = {
        "cap": None, "teacher_cap": None, "divergence": Divergence(kind),
    }  # fmt: skip
    loss, _ = distill(x, w, p["tx"], p["tw"], p["target"], **common)
    assert all(g.isfinite().all() for g in grads(loss, x, w))
    q = {k: t.double() if t.is_floating_point() else t for k, t in p.items()}
    plain, _ = plain_distill(q["x"], q["w"], q["tx"], q["tw"], q["target"], **common)
    # In float64 too some are 0, where the plain version has no number to offer.
    if plain.isfinite():
        assert loss.item() == pytest.approx(plain.item(), rel=1e-4)
    else:
        assert kind in ("jsd", "skew_kl", "skew_reverse_kl")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_fp32(dtype: torch.dtype) -> None:
    """Against the plain version on the same rounded inputs; chunks add up without loss."""
    p = problem(512, 16, 300, 5)
    x, tx = (0.3 * p[k].to(dtype) for k in ("x", "tx"))
    x.requires_grad_()
    w = p["w"].clone().requires_grad_()
    common: dict[str, Any] = {"cap": 30.0, "teacher_cap": 30.0, "divergence": Divergence("jsd")}
    with mock.patch.object(chunked_head, "BLOCK", 70 * 16):  # the head's gradient in five blocks
        loss, _ = distill(x, w, tx, p["tw"], p["target"], **common, chunk=8)
    x64 = x.detach().double().requires_grad_()
    w64, tw64 = (p[k].to(dtype).double() for k in ("w", "tw"))
    w64.requires_grad_()
    plain, _ = plain_distill(x64, w64, tx.double(), tw64, p["target"], **common)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=2e-3)
    got, got_w = grads(loss, x, w)
    assert (got.dtype, got_w.dtype) == (dtype, torch.float32)
    for g, e in zip((got, got_w), grads(plain, x64, w64), strict=True):
        # One rounding of each term: 64 chunks of sums in half precision would be far worse.
        assert (g.double() - e).norm() <= 2 * torch.finfo(dtype).eps * e.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "kl"}, "no divergence 'kl'; there are: cross_entropy, forward_kl"),
        ({"kind": "jsd", "beta": 0.0}, "beta = 0.0 is not between 0 and 1"),
        ({"kind": "skew_kl", "skew": 1.0}, "skew = 1.0 is not between 0 and 1"),
    ],
)
def test_wrong_divergences_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Divergence(**arguments)


def test_heads_of_different_sizes_need_a_vocabulary_size() -> None:
    p = problem(12, 7, 20, 0, padding=2)
    with pytest.raises(ConfigError, match="head has 22 rows and the teacher's 24: set vocab_size"):
        distill(p["x"], p["w"], p["tx"], p["tw"], p["target"], cap=None, teacher_cap=None)


def test_gradients_are_handed_over_once() -> None:
    p = problem(12, 7, 20, 0)
    x = p["x"].requires_grad_()
    loss = Head(p["w"], 30.0).cross_entropy(x, p["target"])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="hands its gradients over once"):
        loss.backward()


def test_tied_embedding_gets_both_gradients() -> None:
    p = problem(12, 7, 20, 0)
    ids = torch.arange(12)
    w = p["w"].clone().requires_grad_()
    (got,) = grads(Head(w, 30.0, chunk=5).cross_entropy(w[ids], p["target"]), w)
    w64 = p["w"].double().requires_grad_()
    plain = F.cross_entropy(soft_cap(w64[ids] @ w64.T, 30.0), p["target"], reduction="sum")
    close(got, *grads(plain, w64))


@pytest.mark.usefixtures("compiler")
def test_compiled_kernels_equal_plain_ones() -> None:
    p = problem(64, 16, 128, 0)
    for compiled in (False, True):
        x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
        ce = Head(w, 30.0, chunk=32).cross_entropy(x, p["target"], compiled=compiled)
        kd, _ = distill(
            x, w, p["tx"], p["tw"], p["target"], cap=30.0, teacher_cap=30.0, chunk=32,
            compiled=compiled,
        )  # fmt: skip
        jsd, _ = distill(
            x, w, p["tx"], p["tw"], p["target"], cap=30.0, teacher_cap=30.0, chunk=32,
            temperature=2.0, alpha=0.3, divergence=Divergence("jsd"), compiled=compiled,
        )  # fmt: skip
        results = [ce.detach(), kd.detach(), jsd.detach(), *grads(ce + kd + jsd, x, w)]
        if not compiled:
            expected = results
    for got, plain in zip(results, expected, strict=True):
        close(got, plain.double())


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("cap", [30.0, None])
def test_compiled_sums_over_a_large_vocabulary_keep_small_terms(cap: float | None) -> None:
    """The most likely tokens first and a quarter of a million unlikely ones after them."""
    g = torch.Generator().manual_seed(0)
    n, v = 4, 250_100
    x, tx = torch.randn(2, n, 16, generator=g)
    scale = 1.2 * torch.linspace(1, 0.7, v)[:, None]
    w, tw = scale * torch.randn(2, v, 16, generator=g)
    target = torch.randint(v, (n,), generator=g)
    common: dict[str, Any] = {"cap": cap, "teacher_cap": cap, "divergence": Divergence("jsd")}
    x.requires_grad_()
    loss, _ = distill(x, w, tx, tw, target, **common, compiled=True)
    x64 = x.detach().double().requires_grad_()
    plain, _ = plain_distill(x64, w.double(), tx.double(), tw.double(), target, **common)
    close(loss.detach(), plain.detach())
    close(*grads(loss, x), *grads(plain, x64))


def test_never_holds_the_whole_batch_of_logits() -> None:
    """Every tensor the loss makes is counted; none is larger than a chunk or a gradient."""
    n, d, v, chunk = 512, 8, 300, 64
    p = problem(n, d, v, 0)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, Tensor):
                    largest = max(largest, t.numel())
            return out

    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    with Watch():
        loss, _ = distill(
            x, w, p["tx"], p["tw"], p["target"], cap=30.0, teacher_cap=30.0, chunk=chunk
        )
        loss.backward()
    assert largest == chunk * v


@pytest.mark.parametrize("vocab", [2, 4096, 256_000])
def test_chunk_size_is_bounded(vocab: int) -> None:
    assert 128 <= chunk_size(vocab) <= 4096
    assert chunk_size(vocab) * vocab * 4 <= max(16 * 2**20, 128 * vocab * 4)
