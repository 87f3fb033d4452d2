import copy

import pytest
import torch
from torch import nn

from gemmule.train.muon import Muon
from gemmule.train.newton_schulz import orthogonalize

SHAPES = [(24, 16), (16, 24), (24, 16), (20, 20), (8, 64)]


def parameters(seed: int) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g)) for s in SHAPES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torchs(dtype: torch.dtype) -> None:
    """To the precision of torch's, which orthogonalises in bfloat16 whatever the machine."""
    ours = parameters(0)
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    mine = Muon(ours, dtype=dtype, **settings)
    plain = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    start = [p.detach().clone() for p in ours]
    g = torch.Generator().manual_seed(1)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        mine.step()
        plain.step()
    for a, b, s in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() <= 0.03 * (b - s).norm()


def test_orthogonalize_brings_singular_values_near_one() -> None:
    x = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    before, after = torch.linalg.svdvals(x), torch.linalg.svdvals(orthogonalize(x))
    assert (before.amax(-1) / before.amin(-1) > 3).all()
    assert after.min() > 0.6
    assert after.max() < 1.3


def test_parameters_without_gradient_stay() -> None:
    params = parameters(0)
    params[0].grad = torch.ones_like(params[0])
    before = [p.detach().clone() for p in params]
    Muon(params, lr=0.1, momentum=0.9, weight_decay=0.1).step()
    moved = [not torch.equal(p, b) for p, b in zip(params, before, strict=True)]
    assert moved == [True, False, False, False, False]
