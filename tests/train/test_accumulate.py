"""Micro-batches give the loss and gradients of the whole batch, whatever their targets."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.runtime.world import SOLO
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.train.config import RunConfig
from gemmule.train.objective import Objective
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.objectives.next_token import NextToken
from gemmule.train.step import accumulate, count
from models import fresh_model, tiny_config

VOCAB = 60


def build(seed: int, **changes: Any) -> Gemma:
    return fresh_model(tiny_config(vocab_size=VOCAB, sliding_window=5, **changes), seed)


def batch() -> Batch:
    """Rows with 12, 1, 7, 0, 3 and 11 targets, of one or more documents."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, VOCAB, (6, 12), generator=g)
    targets = torch.randint(4, VOCAB, (6, 12), generator=g)
    doc_ids = torch.ones(6, 12, dtype=torch.long)
    for row, kept in enumerate([12, 1, 7, 0, 3, 11]):
        targets[row, kept:] = -100
        doc_ids[row, 6:] = row % 2 + 1
    return Batch(tokens, targets, doc_ids)


def rows(whole: Batch, size: int) -> list[Batch]:
    return [
        Batch(
            whole.tokens_BT[i : i + size],
            whole.labels_BT[i : i + size],
            whole.doc_ids_BT[i : i + size],
        )
        for i in range(0, 6, size)
    ]


def step(
    objective: Objective, size: int, config: RunConfig
) -> tuple[dict[str, float], list[torch.Tensor]]:
    model, batches = build(1), rows(batch(), size)
    sums = accumulate(model, objective, batches, objective.denominator(batches), config.runtime)
    grads = [p.grad for p in model.parameters()]
    return sums, [g for g in grads if g is not None]


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "next token": NextToken,
    "distillation": lambda: Distillation(GemmaTeacher("", build(2, hidden_size=48)), 2.0, 0.3),
}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_equals_one_big_batch(name: str, size: int, tiny: Callable[..., dict[str, Any]]) -> None:
    config = RunConfig.parse(tiny(runtime={"device": "cpu"}))
    objective = OBJECTIVES[name]()
    sums, grads = step(objective, 6, config)
    small_sums, small_grads = step(objective, size, config)
    assert small_sums == pytest.approx(sums, rel=1e-5)
    for got, expected in zip(small_grads, grads, strict=True):
        assert (got - expected).norm() <= 2e-5 * expected.norm() + 1e-8


def test_a_batch_without_targets_gives_zero(tiny: Callable[..., dict[str, Any]]) -> None:
    config = RunConfig.parse(tiny(runtime={"device": "cpu"}))
    whole = batch()
    nothing = dataclasses.replace(whole, labels_BT=torch.full_like(whole.labels_BT, -100))
    model = build(1)
    assert count(SOLO, NextToken(), [nothing]) == (1.0, whole.tokens_BT.numel())
    assert accumulate(model, NextToken(), [nothing], 1.0, config.runtime) == {"loss": 0.0}
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_loss_is_the_mean_over_targets(tiny: Callable[..., dict[str, Any]]) -> None:
    config = RunConfig.parse(tiny(runtime={"device": "cpu"}))
    sums, _ = step(NextToken(), 2, config)
    whole, model = batch(), build(1).double()
    logits = model(whole.tokens_BT, doc_ids_BT=whole.doc_ids_BT)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole.labels_BT.flatten())
    assert sums["loss"] == pytest.approx(plain.item(), rel=1e-5)
