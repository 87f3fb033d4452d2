"""The anchor: fixed or a moving average in closed form, and log-probabilities of answers."""

import pytest
import torch

from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain.anchor import Anchor
from gemmule.posttrain.answer_rows import rows_of_rollouts
from gemmule.posttrain.rollouts import Rollout
from gemmule.train.adapters.attach import Adapter, merge
from gemmule.train.adapters.settings import AdapterSettings
from models import TINY, random_model, tiny_config

CONFIG = tiny_config(TINY, vocab_size=520)


def test_a_moving_average_in_closed_form() -> None:
    """After k steps of a model that grows by 1: theta_0 + k - (1 - (1 - mu)^k) (1 - mu) / mu."""
    model, rate = random_model(CONFIG, 1).double(), 0.05
    anchor = Anchor(model, rate)
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(7):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        anchor.update(model)
    lag = (1 - rate) / rate * (1 - (1 - rate) ** 7)
    for own, first in zip(anchor.model.parameters(), start, strict=True):
        assert torch.allclose(own, first + 7 - lag)


def test_a_small_rate_keeps_most_of_the_anchor() -> None:
    """The rate is the model's share: inverted, the anchor would be the model after one step."""
    model = random_model(CONFIG, 1)
    anchor = Anchor(model, 0.05)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    before = anchor.model.norm.weight.clone()
    anchor.update(model)
    assert torch.allclose(anchor.model.norm.weight, 0.95 * before)


def test_it_follows_a_model_with_an_adapter() -> None:
    """The anchor was copied before the adapter was put on, and moves to the merged weights."""
    model = random_model(CONFIG, 1)
    anchor = Anchor(model, 0.25)
    before = {name: p.clone() for name, p in anchor.model.named_parameters()}
    Adapter(AdapterSettings(kind="dora", rank=2), "base", (106, 107)).attach(model, 0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    anchor.update(model)
    merge(model)
    for name, p in anchor.model.named_parameters():
        expected = 0.75 * before[name] + 0.25 * model.get_parameter(name)
        assert torch.allclose(p, expected, atol=1e-6), name
        assert torch.equal(p, before[name]) == ("norm" in name)


def test_a_fixed_anchor_stays_and_is_not_saved() -> None:
    model = random_model(CONFIG, 1)
    fixed, moving = Anchor(model, 0.0), Anchor(model, 0.5)
    before = {name: p.clone() for name, p in fixed.model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    fixed.update(model)
    assert all(p.equal(before[name]) for name, p in fixed.model.named_parameters())
    assert fixed.tensors() == {}
    assert {name.removeprefix("anchor.") for name in moving.tensors()} == set(before)
    assert not any(p.requires_grad for p in fixed.model.parameters())


def test_log_probabilities_of_answers_leave_the_prompt_out(pieces: Tokenizer) -> None:
    model = random_model(CONFIG, 1)
    rollouts = [
        Rollout((2, 300, 301), (310, 311, 107), (0.0,) * 3, "", True),
        Rollout((2, 400), (410,), (0.0,), "", False),
    ]
    sums = Anchor(model, 0.0).answer_logprobs(rows_of_rollouts(rollouts))
    for rollout, value in zip(rollouts, sums.tolist(), strict=True):
        ids = torch.tensor([rollout.prompt + rollout.answer])
        log_p = model(ids).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        expected = log_p[len(rollout.prompt) - 1 :].double().sum().item()
        assert value == pytest.approx(expected, abs=1e-4)
