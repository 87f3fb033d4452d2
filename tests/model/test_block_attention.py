"""Attention in blocks against the plain version in float64, and what it costs."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gemmule.losses.soft_cap import LARGEST_SAFE_LOGIT
from gemmule.model import block_attention
from gemmule.model.attention import attend
from gemmule.model.block_attention import attend_sequence
from gemmule.model.gemma import Gemma, gelu_tanh
from gemmule.runtime import torch_compile
from models import fresh_model, tiny_config

SCALE = 0.3


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short sequences have many of them."""
    monkeypatch.setattr(block_attention, "QUERY_BLOCK", 16)


def inputs(B: int, T: int, N: int, K: int, H: int, seed: int, spread: float = 2.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)]
    return [torch.randn(s, generator=g) * spread for s in shapes]


def documents(B: int, T: int, seed: int) -> Tensor:
    """Segments as the loader makes them: 1, 2, … and padding at the end of some rows."""
    g = torch.Generator().manual_seed(seed)
    starts = torch.rand(B, T, generator=g) < 3 / T
    segments = starts.cumsum(1) + 1
    for row in range(0, B, 2):
        segments[row, T - int(torch.randint(0, T, (1,), generator=g)) :] = 0
    return segments


def both(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, segments: Tensor | None, window: int | None,
    cap: float | None,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Output and gradients: in blocks, and plain in float64."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        if dtype == torch.float32:
            out = attend_sequence(*leaves, segments, window, SCALE, cap)
        else:
            index = torch.arange(q.shape[1])
            out = attend64(*leaves, index, segments, window, cap)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))])
    return results[0], results[1]


def attend64(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, segments: Tensor | None, window: int | None,
    cap: float | None,
) -> Tensor:  # fmt: skip
    """`attention.attend` computes scores in fp32; this is its text, all in float64."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    scores = torch.einsum("btnh,bsnh->bnts", q, k) * SCALE
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    distance = index[:, None] - index[None, :]
    allowed = (distance >= 0)[None]
    if window is not None:
        allowed = allowed & (distance < window)
    if segments is not None:
        allowed = allowed & (segments[:, :, None] == segments[:, None, :])
    weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bnts,bsnh->btnh", weights, v)


def close(got: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    # Gradients of queries with one key are exactly zero and come out as rounding errors, up to
    # some fp32 epsilons of the largest gradient.
    scale = max(b.norm().item() for b in expected)
    for a, b in zip(got, expected, strict=True):
        assert torch.isfinite(a).all()
        assert (a.double() - b).norm() <= tolerance * (b.norm() + 0.2 * scale)


CAPS = st.sampled_from([None, 1.0, 50.0, LARGEST_SAFE_LOGIT, 61.0, 500.0])


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 90),
    groups=st.integers(1, 3),
    K=st.integers(1, 2),
    window=st.one_of(st.none(), st.integers(1, 40)),
    cap=CAPS,
    packed=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_the_plain_version(
    B: int, T: int, groups: int, K: int, window: int | None, cap: float | None, packed: bool,
    seed: int,
) -> None:  # fmt: skip
    block_attention.QUERY_BLOCK = 16
    q, k, v, grad = inputs(B, T, groups * K, K, 8, seed)
    segments = documents(B, T, seed) if packed else None
    close(*both(q, k, v, grad, segments, window, cap))


@pytest.mark.parametrize("T", [65, 128, 200])
@pytest.mark.parametrize("cap", [None, 50.0, 100.0])
def test_windows_far_shorter_than_the_sequence(T: int, cap: float | None) -> None:
    for window in (1, 2, 3, 16, 32):
        q, k, v, grad = inputs(2, T, 4, 2, 8, window)
        close(*both(q, k, v, grad, documents(2, T, window), window, cap))


def test_the_reference_is_what_decoding_uses() -> None:
    q, k, v, _ = inputs(2, 40, 4, 2, 8, 0)
    segments, index = documents(2, 40, 0), torch.arange(40)
    plain = attend(q, k, v, index, index, segments, segments, 7, SCALE, 50.0)
    double = attend64(*(x.double() for x in (q, k, v)), index, segments, 7, 50.0)
    close([plain], [double])


@pytest.mark.parametrize("cap", [None, 50.0, LARGEST_SAFE_LOGIT, 1000.0])
def test_scores_at_the_cap(cap: float | None) -> None:
    """Every score at plus or minus the cap, where the softmax without a maximum is strained."""
    q, k, v, grad = inputs(1, 48, 2, 1, 8, 0)
    for sign in (1.0, -1.0):
        hot_q, hot_k = torch.ones_like(q) * 40, torch.ones_like(k) * 40 * sign
        hot_k[:, ::5] *= 0.5
        got, expected = both(hot_q, hot_k, v, grad, None, None, cap)
        close(got[:1] + got[3:], expected[:1] + expected[3:], 1e-4)
        assert all(torch.isfinite(x).all() for x in got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes_at_the_cap(dtype: torch.dtype) -> None:
    """exp(50) does not fit into float16, in which only the plain version's weights would."""
    q, k, v, _ = (x.to(dtype) for x in inputs(1, 64, 4, 2, 16, seed=3, spread=6.0))
    index = torch.arange(64)
    expected = attend64(q.double(), k.double(), v.double(), index, None, 16, 50.0)
    got = attend_sequence(q, k, v, None, 16, SCALE, 50.0)
    assert got.dtype == dtype
    plain = attend(q, k, v, index, index, None, None, 16, SCALE, 50.0)
    allowed = 2 * (plain.double() - expected).abs().max()  # rounded scores pick other keys
    assert (got.double() - expected).abs().max() <= allowed


@pytest.mark.parametrize("window", [None, 5, 30])
def test_rows_of_padding_stay_finite(window: int | None) -> None:
    q, k, v, grad = inputs(2, 70, 2, 1, 8, 0)
    segments = torch.zeros(2, 70, dtype=torch.long)
    segments[1, :9] = 1
    got, expected = both(q, k, v, grad, segments, window, 50.0)
    close(got, expected)


@pytest.mark.parametrize("window", [None, 6])
def test_packed_documents_do_not_see_one_another(window: int | None) -> None:
    q, k, v, _ = inputs(1, 50, 2, 1, 8, 0)
    segments = torch.ones(1, 50, dtype=torch.long)
    segments[:, 20:] = 2
    together = attend_sequence(q, k, v, segments, window, SCALE, 50.0)
    for part in (slice(0, 20), slice(20, 50)):
        alone = attend_sequence(q[:, part], k[:, part], v[:, part], None, window, SCALE, 50.0)
        assert torch.allclose(together[:, part], alone, atol=1e-6)


def flops(T: int, window: int | None) -> int:
    q, k, v, grad = inputs(1, T, 2, 1, 8, 0)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with FlopCounterMode(display=False) as counter:
        attend_sequence(*leaves, None, window, SCALE, 50.0).backward(grad)
    return int(counter.get_total_flops())


def test_a_local_layer_costs_as_much_as_its_window() -> None:
    at = {T: flops(T, 32) for T in (512, 1024, 2048)}
    assert at[1024] == pytest.approx(2 * at[512], rel=0.02)
    assert at[2048] == pytest.approx(2 * at[1024], rel=0.02)
    # Forward and backward are six products over the keys a query meets, here 1.5 windows.
    assert at[2048] <= 6 * 2 * 2048 * 2 * 8 * 1.5 * 32 * 1.01
    # A longer window costs in proportion.
    assert flops(2048, 64) == pytest.approx(2 * at[2048], rel=0.05)


def test_a_global_layer_skips_the_future() -> None:
    full = 6 * 2 * 1024 * 1024 * 2 * 8
    assert flops(1024, None) < 0.6 * full


def test_gelu_branches_agree() -> None:
    x = torch.linspace(-12, 12, 4001, requires_grad=True)
    plain = gelu_tanh(x)
    (slope,) = torch.autograd.grad(plain.sum(), x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        other = gelu_tanh(x)
    (other_slope,) = torch.autograd.grad(other.sum(), x)
    assert torch.allclose(other, plain, rtol=1e-5, atol=1e-6)
    assert torch.allclose(other_slope, slope, rtol=1e-5, atol=2e-6)


def tiny_model() -> Gemma:
    return fresh_model(tiny_config(vocab_size=64, intermediate_size=64), 0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler", "fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # all from the compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_blocks_equal_eager_ones() -> None:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 64, (2, 20), generator=g)  # two blocks, more than two windows
    segments, weights = documents(2, 20, 1), torch.randn(2, 20, 32, generator=g)
    results = []
    for compiled in (False, True):
        model = tiny_model()
        if compiled:
            torch_compile.compile_blocks(model.layers)
        out = model.hidden_states(tokens, doc_ids_BT=segments)
        (out * weights).sum().backward()
        grads = [p.grad for p in model.parameters()]
        results.append([out.detach().double(), *(g.double() for g in grads if g is not None)])
    for eager, fast in zip(*results, strict=True):
        assert (fast - eager).norm() <= 1e-5 * eager.norm()
