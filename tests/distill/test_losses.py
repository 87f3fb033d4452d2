"""The chunked losses against plain float64 autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from gemmule.distill.losses import chunk_size, linear_cross_entropy, linear_distillation
from gemmule.model.soft_cap import soft_cap

CAPS = st.sampled_from([None, 2.0, 30.0])


def problem(n: int, d: int, v: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, v, (n,), generator=g)
    target[torch.rand(n, generator=g) < 0.2] = -100
    return {
        "x": torch.randn(n, d, generator=g),
        "w": torch.randn(v, d, generator=g),
        "tx": torch.randn(n, d + 3, generator=g),
        "tw": torch.randn(v, d + 3, generator=g),
        "target": target,
    }


def grads(loss: Tensor, *wrt: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, wrt))


def close(got: Tensor, expected: Tensor) -> None:
    """Relative error 1e-5; the absolute part is what fp32 leaves of 1 - p when p is nearly 1."""
    error = (got.double() - expected).norm().item()
    assert error <= 1e-5 * expected.norm().item() + 2e-6


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40), v=st.integers(2, 70), cap=CAPS, chunk=st.integers(1, 50),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_cross_entropy(n: int, v: int, cap: float | None, chunk: int, seed: int) -> None:
    p = problem(n, 7, v, seed)
    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    loss = linear_cross_entropy(x, w, p["target"], cap=cap, chunk=chunk)
    x64, w64 = (p[k].double().requires_grad_() for k in ("x", "w"))
    plain = F.cross_entropy(soft_cap(x64 @ w64.T, cap), p["target"], reduction="sum")
    close(loss.detach(), plain.detach())
    for got, expected in zip(grads(3.0 * loss, x, w), grads(3.0 * plain, x64, w64), strict=True):
        close(got, expected)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40), v=st.integers(2, 70), cap=CAPS, teacher_cap=CAPS,
    temperature=st.sampled_from([0.5, 1.0, 3.0]), alpha=st.sampled_from([0.0, 0.3, 1.0]),
    chunk=st.integers(1, 50), seed=st.integers(0, 999),
)  # fmt: skip
def test_distillation(
    n: int, v: int, cap: float | None, teacher_cap: float | None, temperature: float,
    alpha: float, chunk: int, seed: int,
) -> None:  # fmt: skip
    p = problem(n, 7, v, seed)
    x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
    loss, hard = linear_distillation(
        x, w, p["tx"], p["tw"], p["target"], cap=cap, teacher_cap=teacher_cap,
        temperature=temperature, alpha=alpha, chunk=chunk,
    )  # fmt: skip
    x64, w64 = (p[k].double().requires_grad_() for k in ("x", "w"))
    logits = soft_cap(x64 @ w64.T, cap)
    teacher = soft_cap(p["tx"].double() @ p["tw"].double().T, teacher_cap)
    keep = p["target"] != -100
    q = (teacher / temperature).softmax(-1)
    soft = -(q * (logits / temperature).log_softmax(-1)).sum(-1)[keep].sum()
    nll = F.cross_entropy(logits, p["target"], reduction="sum")
    plain = (1 - alpha) * temperature**2 * soft + alpha * nll
    close(loss.detach(), plain.detach())
    close(hard, nll.detach())
    for got, expected in zip(grads(2.0 * loss, x, w), grads(2.0 * plain, x64, w64), strict=True):
        close(got, expected)


def test_tied_embedding_gets_both_gradients() -> None:
    p = problem(12, 7, 20, 0)
    ids = torch.arange(12)
    w = p["w"].clone().requires_grad_()
    (got,) = grads(linear_cross_entropy(w[ids], w, p["target"], cap=30.0, chunk=5), w)
    w64 = p["w"].double().requires_grad_()
    plain = F.cross_entropy(soft_cap(w64[ids] @ w64.T, 30.0), p["target"], reduction="sum")
    close(got, *grads(plain, w64))


def test_compiled_kernels_equal_plain_ones() -> None:
    p = problem(64, 16, 128, 0)
    for compiled in (False, True):
        x, w = (p[k].clone().requires_grad_() for k in ("x", "w"))
        ce = linear_cross_entropy(x, w, p["target"], cap=30.0, chunk=32, compiled=compiled)
        kd, _ = linear_distillation(
            x, w, p["tx"], p["tw"], p["target"], cap=30.0, teacher_cap=30.0, chunk=32,
            compiled=compiled,
        )  # fmt: skip
        results = [ce.detach(), kd.detach(), *grads(ce + kd, x, w)]
        if not compiled:
            expected = results
    for got, plain in zip(results, expected, strict=True):
        close(got, plain.double())


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
        loss, _ = linear_distillation(
            x, w, p["tx"], p["tw"], p["target"], cap=30.0, teacher_cap=30.0, chunk=chunk
        )
        loss.backward()
    assert largest == chunk * v


@pytest.mark.parametrize("vocab", [2, 4096, 256_000])
def test_chunk_size_is_bounded(vocab: int) -> None:
    assert 64 <= chunk_size(vocab) <= 4096
    assert chunk_size(vocab) * vocab * 4 <= max(16 * 2**20, 64 * vocab * 4)
