import pytest
import torch

from gemmule.model.gemma import Gemma
from gemmule.train.config import OptimizerConfig
from gemmule.train.muon import Muon
from gemmule.train.optimizers import build_optimizers, clip_gradients, set_learning_rate
from models import SMALLEST, tiny_config

CONFIG = tiny_config(SMALLEST, vocab_size=24, num_hidden_layers=2, sliding_window=4096)


@pytest.fixture
def model() -> Gemma:
    return Gemma(CONFIG)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_groups(name: str, model: Gemma) -> None:
    config = OptimizerConfig.parse(
        {"name": name, "learning_rate": 0.01, "embedding_learning_rate": 0.03, "weight_decay": 0.2}
    )
    names = {p: n for n, p in model.named_parameters()}
    seen = []
    for optimizer in build_optimizers(model, config):
        for group in optimizer.param_groups:
            for p in group["params"]:
                hidden = names[p].startswith("layers.") and names[p].endswith("proj.weight")
                assert group["weight_decay"] == (0.2 if hidden else 0.0), names[p]
                assert group["lr"] == group["peak_lr"] == (0.01 if hidden else 0.03)
                assert isinstance(optimizer, Muon) == (hidden and name == "muon")
                seen.append(names[p])
    assert sorted(seen) == sorted(names.values())


def test_only_hidden_matrices_decay(model: Gemma) -> None:
    """With no gradient to follow, a step moves exactly what decays."""
    config = OptimizerConfig.parse({"name": "adamw", "weight_decay": 0.5, "learning_rate": 0.1})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in build_optimizers(model, config):
        optimizer.step()
    for name, p in model.named_parameters():
        hidden = name.endswith("proj.weight")
        assert torch.allclose(p, before[name] * (0.95 if hidden else 1.0)), name


def test_learning_rate_is_a_share_of_each_peak(model: Gemma) -> None:
    config = OptimizerConfig.parse({"learning_rate": 0.01, "embedding_learning_rate": 0.03})
    optimizers = build_optimizers(model, config)
    for factor in (0.5, 0.25):  # of the peak, not of the last value
        set_learning_rate(optimizers, factor)
    rates = {g["lr"] for o in optimizers for g in o.param_groups}
    assert rates == {0.0025, 0.0075}


def test_clipping(model: Gemma) -> None:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    size = sum(p.numel() for p in model.parameters()) ** 0.5
    assert clip_gradients(model, 2.0).item() == pytest.approx(size)

    def norm() -> float:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return torch.stack([g.norm() for g in grads]).norm().item()

    assert norm() == pytest.approx(2.0, rel=1e-4)
    assert clip_gradients(model, 5.0).item() == pytest.approx(2.0, rel=1e-4)
    assert norm() == pytest.approx(2.0, rel=1e-4)  # a small one is left alone
