"""Distillation as a whole step."""

import copy

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.train.objective import Objective
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.objectives.next_token import NextToken
from models import fresh_model, tiny_config

VOCAB = 80


def build(seed: int, hidden: int = 32, vocab: int = VOCAB) -> Gemma:
    return fresh_model(tiny_config(vocab_size=vocab, hidden_size=hidden, sliding_window=5), seed)


def taught_by(model: Gemma) -> GemmaTeacher:
    return GemmaTeacher("", model)


def batch(rows: int = 3, length: int = 10, vocab: int = VOCAB) -> Batch:
    g = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(4, vocab, (2, rows, length), generator=g)
    targets[0, 4:6] = -100
    return Batch(tokens, targets, torch.ones_like(tokens))


def gradients(objective: Objective, model: Gemma) -> tuple[float, Tensor]:
    model.zero_grad()
    loss, _ = objective.loss(model, batch())
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_nothing_to_learn_from_oneself(temperature: float) -> None:
    student = build(0)
    _, plain = gradients(NextToken(), student)
    own = Distillation(taught_by(copy.deepcopy(student)), temperature, 0.0)
    _, none = gradients(own, student)
    assert none.norm() <= 1e-5 * plain.norm()


def test_alpha_one_is_plain_training() -> None:
    student, teacher = build(0), build(1, hidden=48)
    loss, plain = gradients(NextToken(), student)
    mixed_loss, mixed = gradients(Distillation(taught_by(teacher), 1.0, 1.0), student)
    assert mixed_loss == pytest.approx(loss, rel=1e-6)
    assert (mixed - plain).norm() <= 1e-6 * plain.norm()


def test_reports_the_next_token_loss() -> None:
    student, teacher = build(0), build(1, hidden=48)
    _, figures = Distillation(taught_by(teacher), 2.0, 0.0).loss(student, batch())
    loss, _ = NextToken().loss(student, batch())
    assert figures["next_token_loss"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = build(0), build(1, hidden=48)
    gradients(Distillation(taught_by(teacher), 1.0, 0.5), student)
    assert all(p.grad is None for p in teacher.parameters())


def test_flops() -> None:
    student, teacher = build(0), build(1, hidden=48)
    forward, teaching = (m.config.forward_flops_per_token(16) for m in (student, teacher))
    assert NextToken().flops_per_token(student, 16) == 3 * forward
    distilled = Distillation(taught_by(teacher), 1.0, 0.0).flops_per_token(student, 16)
    assert distilled == 3 * forward + teaching


@pytest.mark.parametrize("distil", [False, True])
def test_never_holds_the_logits_of_the_batch(distil: bool) -> None:
    """Over the whole step, backward included, of both models."""
    vocab, rows, length = 20_000, 8, 64
    student, teacher = build(0, 8, vocab), build(1, 16, vocab)
    objective = Distillation(taught_by(teacher), 1.0, 0.5) if distil else NextToken()
    inputs = batch(rows, length, vocab)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else (out,):
                if isinstance(t, Tensor):
                    largest = max(largest, t.untyped_storage().nbytes())
            return out

    with Watch():
        loss, _ = objective.loss(student, inputs)
        loss.backward()
    assert largest <= 16 * 2**20  # a chunk; the batch would take 41 MB
    assert rows * length * vocab * 4 > 2 * 16 * 2**20
