import torch

from gemmule.losses.soft_cap import fast_tanh, soft_cap


def test_fast_tanh_is_tanh() -> None:
    y = torch.cat([torch.linspace(-100, 100, 200_001), torch.logspace(-30, 2, 10_000)])
    exact = torch.tanh(y.double())
    error = (fast_tanh(y).double() - exact).abs()
    assert (error <= 4e-7 * exact.abs()).all()


def test_fast_tanh_at_the_ends() -> None:
    y = torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    assert torch.equal(fast_tanh(y)[:6], torch.tensor([0.0, -0.0, 1, -1, 1, -1]))
    assert fast_tanh(y)[6].isnan()


def test_soft_cap() -> None:
    x = torch.tensor([0.0, 1e-3, 50.0, 1e9])
    assert torch.allclose(soft_cap(x, 50.0), torch.tensor([0.0, 1e-3, 50 * 0.76159416, 50.0]))
    assert soft_cap(x, None) is x
