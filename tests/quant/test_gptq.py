"""GPTQ: less error in the products than rounding each weight by itself, in the same bytes."""

import math

import pytest
import torch
from torch import Tensor

from gemmule.errors import CheckpointError
from gemmule.quant import gptq
from gemmule.quant.packed import PackedMatrix, quantize


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(tokens: int, columns: int, seed: int = 1) -> Tensor:
    """Correlated inputs, some much larger than others."""
    mixing = draw(columns, columns, seed=seed) / columns**0.5 + torch.eye(columns)
    return draw(tokens, columns, seed=seed + 1) @ mixing * (0.1 + draw(columns, seed=9).square())


def loss(packed: PackedMatrix, weight: Tensor, x: Tensor) -> float:
    return float(
        (x @ (packed.dequantize() - weight).T).square().sum() / (x @ weight.T).square().sum()
    )


def hessian(x: Tensor) -> Tensor:
    accumulator = gptq.Hessian(x.shape[-1])
    for part in x.split(100):
        accumulator.add(part.view(1, *part.shape))
    return accumulator.mean_KK


@pytest.mark.parametrize("shape", [(40, 512), (33, 100), (16, 320), (5, 30)], ids=str)
def test_products_are_nearer_on_inputs_not_seen_before(shape: tuple[int, int]) -> None:
    weight, x = draw(*shape) * 0.05, correlated(3000, shape[1])
    fresh = draw(500, shape[1], seed=7) @ torch.linalg.cholesky(hessian(x)).T
    nearest = quantize(weight, "int4")
    plain = loss(nearest, weight, fresh)
    packed = gptq.quantize(weight, hessian(x))
    assert packed.data.shape == nearest.data.shape
    assert loss(packed, weight, fresh) < 0.75 * plain


def test_the_mean_of_the_hessian() -> None:
    x = draw(250, 30)
    torch.testing.assert_close(hessian(x), x.T @ x / 250)


def test_unrelated_inputs_gain_nothing_and_lose_nothing() -> None:
    weight = draw(32, 256) * 0.05
    packed, plain = gptq.quantize(weight, torch.eye(256)), quantize(weight, "int4")
    x = torch.eye(256)
    assert loss(packed, weight, x) == pytest.approx(loss(plain, weight, x), rel=0.02)


def test_weights_are_left_as_they_were() -> None:
    weight = draw(20, 300)
    before = weight.clone()
    gptq.quantize(weight, hessian(correlated(1000, 300)))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("tokens", [0, 3, 100])
def test_fewer_inputs_than_columns(tokens: int) -> None:
    weight = draw(16, 256) * 0.05
    packed = gptq.quantize(
        weight, hessian(correlated(tokens, 256)) if tokens else torch.zeros(256, 256)
    )
    error = (packed.dequantize() - weight).square().sum() / weight.square().sum()
    assert error < 0.05  # what has not been seen is still there


def test_inputs_that_are_always_zero() -> None:
    weight, x = draw(16, 256) * 0.05, correlated(1000, 256)
    x[:, 40:140] = 0
    values = gptq.quantize(weight, hessian(x)).dequantize()
    assert values.isfinite().all()
    assert (values - weight)[:, 40:140].norm() < 0.2 * weight[:, 40:140].norm()


def test_many_rows_are_done_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = draw(70, 128) * 0.05, hessian(correlated(500, 128))
    whole = gptq.quantize(weight, h)
    monkeypatch.setattr(gptq, "_ROWS", 32)
    torch.testing.assert_close(gptq.quantize(weight, h).dequantize(), whole.dequantize())


def test_nan_and_inf_are_refused() -> None:
    weight, h = draw(16, 64), torch.eye(64)
    h[3, 3] = math.nan
    with pytest.raises(CheckpointError, match="calibration gave inputs that are NaN"):
        gptq.quantize(weight, h)
    weight[2, 2] = math.inf
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        gptq.quantize(weight, torch.eye(64))
