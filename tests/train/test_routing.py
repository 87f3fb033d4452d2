"""Tokens of which the teacher is unsure learn from the next token; the others from the teacher."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.errors import ConfigError
from gemmule.losses.divergences import DistillationLoss, Divergence
from gemmule.losses.head import Head
from gemmule.losses.plain import plain_distillation
from gemmule.model.gemma import Gemma
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.train.config import RunConfig
from gemmule.train.objective import Objective
from gemmule.train.objectives.distillation import Distillation
from gemmule.train.objectives.next_token import NextToken
from models import fresh_model, tiny_config

VOCAB = 80
CAP = 30.0


def build(seed: int, hidden: int) -> Gemma:
    config = tiny_config(vocab_size=VOCAB, hidden_size=hidden, sliding_window=5)
    return fresh_model(config, seed)


@pytest.fixture
def teacher() -> GemmaTeacher:
    model = build(1, 48)
    with torch.no_grad():
        model.embed_tokens.weight *= 1.5  # from sure to unsure, so that routing parts the tokens
    return GemmaTeacher("teacher", model)


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(4, VOCAB, (2, 4, 12), generator=g)
    targets[0, 4:6] = -100
    return Batch(tokens, targets, torch.ones_like(tokens))


def gradients(objective: Objective, model: Gemma, batch: Batch) -> tuple[float, Tensor, dict]:  # type: ignore[type-arg]
    model.zero_grad()
    loss, figures = objective.loss(model, batch)
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads), figures


def entropies(teacher: GemmaTeacher, batch: Batch) -> Tensor:
    with torch.no_grad():
        logits = teacher.model(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT).flatten(0, 1)
    return torch.distributions.Categorical(logits=logits.double()).entropy()


def between(entropy_N: Tensor) -> float:
    """A threshold with half the tokens on either side, and none near it."""
    ordered_N = entropy_N.sort().values
    half = len(ordered_N) // 2
    return ordered_N[half - 1 : half + 1].mean().item()


def test_entropy_is_that_of_the_whole_distribution(teacher: GemmaTeacher, batch: Batch) -> None:
    entropy_N = teacher.head.entropies(teacher.hidden_states(batch).flatten(0, 1))
    expected = entropies(teacher, batch)
    assert torch.allclose(entropy_N.double(), expected, atol=1e-5)
    assert expected.max() - expected.min() > 0.3


@pytest.mark.parametrize("settings", [(1.0, 0.0), (2.0, 0.25)])
@pytest.mark.parametrize("kind", ["cross_entropy", "reverse_kl"])
def test_as_written_plainly(
    teacher: GemmaTeacher, batch: Batch, settings: tuple[float, float], kind: str
) -> None:
    student = build(0, 32)
    temperature, alpha = settings
    entropy_N = entropies(teacher, batch)
    threshold = between(entropy_N)
    divergence = Divergence(kind)  # type: ignore[arg-type]
    objective = Distillation(teacher, temperature, alpha, divergence, threshold)
    loss, grads, figures = gradients(objective, student, batch)

    def plain(model: Gemma, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x_ND = model.hidden_states(batch.tokens_BT, doc_ids_BT=batch.doc_ids_BT).flatten(0, 1)
        inputs = (Head(model.embed_tokens.weight, CAP), x_ND,
                  Head(teacher.model.embed_tokens.weight, CAP),
                  teacher.hidden_states(batch).flatten(0, 1),
                  batch.labels_BT.flatten())  # fmt: skip
        sure_N = (entropy_N <= threshold).float()
        loss = DistillationLoss(divergence, temperature, alpha)
        soft, _ = plain_distillation(*inputs, loss, weights_N=sure_N)
        hard, _ = plain_distillation(*inputs, DistillationLoss(alpha=1.0), weights_N=1 - sure_N)
        return soft + hard, {}

    plain_loss, plain_grads, _ = gradients(SimpleNamespace(loss=plain), student, batch)  # type: ignore[arg-type]
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    assert (grads - plain_grads).norm() <= 1e-5 * plain_grads.norm()
    counted = batch.labels_BT.flatten() >= 0
    assert figures["routed"].item() == ((entropy_N > threshold) & counted).sum()
    whole, _ = NextToken().loss(student, batch)
    assert figures["next_token_loss"].item() == pytest.approx(whole.item(), rel=1e-5)


def test_at_the_ends(teacher: GemmaTeacher, batch: Batch) -> None:
    student = build(0, 32)
    plain = gradients(Distillation(teacher, 1.0, 0.0), student, batch)
    none = gradients(Distillation(teacher, 1.0, 0.0, route_above=100.0), student, batch)
    every = gradients(Distillation(teacher, 1.0, 0.0, route_above=0.0), student, batch)
    hard = gradients(NextToken(), student, batch)
    assert none[0] == pytest.approx(plain[0], rel=1e-6)
    assert torch.allclose(none[1], plain[1], atol=1e-6)
    assert every[0] == pytest.approx(hard[0], rel=1e-6)
    assert torch.allclose(every[1], hard[1], atol=1e-5)


def test_more_work_is_counted(teacher: GemmaTeacher) -> None:
    student = build(0, 32)
    plain = Distillation(teacher, 1.0, 0.0).flops_per_token(student, 16)
    routed = Distillation(teacher, 1.0, 0.0, route_above=1.0).flops_per_token(student, 16)
    assert routed - plain == 6 * VOCAB * 32 + 2 * VOCAB * 48


def test_a_record_cannot_be_asked() -> None:
    with pytest.raises(ConfigError, match="route_above needs the teacher's entropy"):
        RunConfig.parse(
            {
                "data": {"path": "x"},
                "steps": 1,
                "objective": {"kind": "distill", "targets": "store", "route_above": 2.0},
            }
        )
