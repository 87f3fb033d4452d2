"""Layers over packed matrices: native kernels, torch's kernels and the reference product."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gemmule.quant import linear
from gemmule.quant.layout import PACKED
from gemmule.quant.linear import PackedEmbedding, PackedLinear
from gemmule.quant.packed import PackedMatrix, plain, quantize


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GEMMULE_NATIVE", "0")
    linear._report_fallback.cache_clear()
    yield
    linear._report_fallback.cache_clear()


def packed(kind: str, rows: int = 70, columns: int = 300) -> PackedMatrix:
    return quantize(draw(rows, columns) * 0.05, kind)


@pytest.mark.parametrize("tokens", [1, 3, 64, 130])
@pytest.mark.parametrize("kind", PACKED)
def test_torch_s_kernels_hold_the_same_weights(
    kind: str, tokens: int, no_library: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_REPACKED", 16 * 320 * 2)  # in parts
    matrix, x = packed(kind), draw(tokens, 300, seed=1)
    expected = x @ matrix.dequantize().T
    torch.testing.assert_close(PackedLinear(matrix)(x), expected, rtol=1e-4, atol=1e-5)


def test_without_kernels_it_says_so_once(
    no_library: None, capsys: pytest.CaptureFixture[str]
) -> None:
    PackedLinear(packed("int4"))
    PackedLinear(packed("int8"))
    assert capsys.readouterr().err.count("no native kernels (GEMMULE_NATIVE is 0)") == 1


@pytest.mark.parametrize("kind", PACKED)
def test_the_plain_product_is_near_the_floats(kind: str) -> None:
    matrix, x = packed(kind), draw(2, 5, 300, seed=1)
    y = PackedLinear(matrix, plain=True)(x)
    exact = x @ matrix.dequantize().T
    assert y.shape == (2, 5, 70)
    assert (y - exact).norm() < 0.012 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_shape_are_kept(dtype: torch.dtype) -> None:
    x = draw(2, 3, 300).to(dtype)
    for matrix in (*map(packed, PACKED), plain(draw(70, 300))):
        y = PackedLinear(matrix, plain=True)(x)
        assert (y.dtype, y.shape) == (dtype, (2, 3, 70))


@pytest.mark.parametrize("kind", PACKED)
def test_embedding(kind: str) -> None:
    matrix = packed(kind)
    embedding, ids = PackedEmbedding(matrix), torch.tensor([[3, 69], [0, 17]])
    assert torch.equal(embedding(ids), matrix.dequantize()[ids])
    assert torch.equal(embedding.weight, matrix.dequantize())


@pytest.mark.parametrize("kind", [*PACKED, "f32"])
def test_rows_come_in_chunks(kind: str) -> None:
    matrix = packed(kind) if kind in PACKED else plain(draw(70, 300))
    parts = list(matrix.chunks(2))
    assert [len(part) for part in parts] == [32, 32, 6]
    assert torch.equal(torch.cat(parts), matrix.dequantize())
