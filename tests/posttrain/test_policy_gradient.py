"""The policy gradient against float64 autograd, for every way to cut a step into micro-batches."""

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.errors import TrainingError
from gemmule.losses.labels import IGNORED
from gemmule.model.gemma import Gemma
from gemmule.posttrain.anchor import Anchor
from gemmule.posttrain.answer_rows import rows_of_rollouts
from gemmule.posttrain.objectives.policy_gradient import (
    FROM_ANCHOR,
    LossType,
    Normalization,
    PolicyGradient,
)
from gemmule.posttrain.rollouts import Rollout
from gemmule.posttrain.sampler_check import SamplerCheck
from gemmule.runtime.config import RuntimeConfig
from gemmule.train.step import accumulate
from models import GROUPED, random_model, tiny_config

CONFIG = tiny_config(GROUPED, vocab_size=520)
RUNTIME = RuntimeConfig(device="cpu", dtype="float32", compile=False)
LOSS_TYPES: tuple[LossType, ...] = ("rloo", "grpo", "dr_grpo", "dapo")
WEIGHTS = (0.5, -1.25, 0.0, 2.0)
LIMIT = 9


def log_p(model: Gemma, rollout: Rollout) -> Tensor:
    ids = torch.tensor([rollout.prompt + rollout.answer])
    rows = model(ids).log_softmax(-1)[0, len(rollout.prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(rollout.answer)[:, None])[:, 0]


@pytest.fixture(scope="module")
def model() -> Gemma:
    return random_model(CONFIG, 5, std={"norm": 0.2, "": 0.2})


@pytest.fixture(scope="module")
def rollouts(model: Gemma) -> list[Rollout]:
    generator = torch.Generator().manual_seed(3)
    sizes = ((3, 4), (7, 9), (2, 1), (5, 8))  # windows are shorter than the longest
    drawn = []
    for prompt, answer in sizes:
        ids = torch.randint(200, 500, (prompt + answer,), generator=generator).tolist()
        drawn.append(Rollout((2, *ids[:prompt]), tuple(ids[prompt:]), (), "", True))
    with torch.no_grad():
        return [dataclasses.replace(r, logprobs=tuple(log_p(model, r).tolist())) for r in drawn]


def batches(rollouts: Sequence[Rollout], how: Normalization, rows: int) -> list[Batch]:
    made = []
    for at in range(0, len(rollouts), rows):
        part = rollouts[at : at + rows]
        batch = rows_of_rollouts(part)
        weights = torch.tensor(
            [w * how.token_weight(len(r.answer)) for r, w in zip(part, WEIGHTS[at:], strict=False)]
        )
        marked = weights[:, None] * (batch.labels_BT != IGNORED)
        made.append(dataclasses.replace(batch, weights_BT=marked))
    return made


def gradients(model: Gemma, objective: PolicyGradient, parts: Sequence[Batch]) -> list[Tensor]:
    model.zero_grad()
    accumulate(model, objective, parts, objective.denominator(parts), RUNTIME)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def reference(
    model: Gemma, rollouts: Sequence[Rollout], loss_type: LossType, kl: float = 0.0
) -> list[Tensor]:
    """The gradient by the definition, in float64."""
    exact = Gemma(CONFIG).double()
    exact.load_state_dict(model.state_dict())
    anchor = random_model(CONFIG, 6, std={"norm": 0.2, "": 0.2}).double()
    total = torch.zeros((), dtype=torch.float64)
    for rollout, weight in zip(rollouts, WEIGHTS, strict=True):
        per_token = -weight * log_p(exact, rollout)
        if kl:
            ids = torch.tensor([rollout.prompt + rollout.answer])
            own, other = (
                m(ids).log_softmax(-1)[0, len(rollout.prompt) - 1 : -1] for m in (exact, anchor)
            )
            per_token = per_token + kl * (own.exp() * (own - other.detach())).sum(-1)
        total = total + (per_token.mean() if loss_type == "grpo" else per_token.sum())
    tokens = sum(len(r.answer) for r in rollouts)
    divisor = {"rloo": 4, "grpo": 4, "dr_grpo": 4 * LIMIT, "dapo": tokens}[loss_type]
    return list(torch.autograd.grad(total / divisor, list(exact.parameters())))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_gradients_are_those_of_the_definition_however_the_step_is_cut(
    model: Gemma, rollouts: list[Rollout], loss_type: LossType, kl: float
) -> None:
    how = Normalization(loss_type, LIMIT)
    anchor = Anchor(random_model(CONFIG, 6, std={"norm": 0.2, "": 0.2}), 0.0) if kl else None
    expected = reference(model, rollouts, loss_type, kl)
    for rows in (1, 2, 4):
        objective = PolicyGradient(how, SamplerCheck(), anchor, kl)
        ours = gradients(model, objective, batches(rollouts, how, rows))
        for own, right in zip(ours, expected, strict=True):
            largest = float(right.abs().max())
            assert torch.allclose(own.double(), right, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_kl_is_logged_per_answer_whatever_the_loss_is_divided_by(
    model: Gemma, rollouts: list[Rollout], loss_type: LossType
) -> None:
    how = Normalization(loss_type, LIMIT)
    other = random_model(CONFIG, 6, std={"norm": 0.2, "": 0.2})
    expected = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt + rollout.answer])
        with torch.no_grad():
            own, anchor = (
                m(ids).double().log_softmax(-1)[0, len(rollout.prompt) - 1 : -1]
                for m in (model, other)
            )
        kl = (own.exp() * (own - anchor)).sum(-1)
        expected.append(float(kl.mean() if loss_type == "grpo" else kl.sum()))
    for rows in (1, 4):
        objective = PolicyGradient(how, SamplerCheck(), Anchor(other, 0.0), 0.3)
        parts = batches(rollouts, how, rows)
        model.zero_grad()
        means = accumulate(model, objective, parts, objective.denominator(parts), RUNTIME)
        assert means["kl"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_the_anchors_pass_is_counted(model: Gemma) -> None:
    how, forward = Normalization("rloo", LIMIT), CONFIG.forward_flops_per_token(16)
    alone = PolicyGradient(how, SamplerCheck())
    kept = PolicyGradient(how, SamplerCheck(), Anchor(model, 0.0))
    assert alone.flops_per_token(model, 16) == 3 * forward
    assert kept.flops_per_token(model, 16) == 4 * forward


def test_the_stop_token_is_trained(model: Gemma, rollouts: list[Rollout]) -> None:
    batch = rows_of_rollouts(rollouts)
    for row, rollout in zip(batch.labels_BT, rollouts, strict=True):
        assert tuple(row[row != IGNORED].tolist()) == rollout.answer


def changed(value: Callable[[float], float]) -> Callable[[Rollout], Rollout]:
    return lambda r: dataclasses.replace(r, logprobs=tuple(map(value, r.logprobs)))


def test_the_check_measures_and_stops(model: Gemma, rollouts: list[Rollout]) -> None:
    how = Normalization("rloo", LIMIT)
    check = SamplerCheck()
    gradients(model, PolicyGradient(how, check), batches(rollouts, how, 2))
    metrics = check.after_step()
    assert 0 <= metrics["sampling/logp_difference/mean"] <= metrics["sampling/logp_difference/max"]
    assert metrics["sampling/logp_difference/max"] < 1e-4
    assert check.after_step() == {}
    for change in (lambda x: x / 0.8, lambda x: x + 0.11, lambda _: float("nan")):
        wrong = [changed(change)(r) for r in rollouts]
        with pytest.raises(TrainingError, match="sampler and trainer disagree"):
            gradients(model, PolicyGradient(how, check), batches(wrong, how, 2))


def test_answers_of_the_anchor_are_not_compared(model: Gemma, rollouts: list[Rollout]) -> None:
    how, check = Normalization("rloo", LIMIT, 2), SamplerCheck()
    theirs = [changed(lambda x: x - 3)(r) if i % 2 else r for i, r in enumerate(rollouts)]
    parts = [
        dataclasses.replace(part, extras={**part.extras, FROM_ANCHOR: torch.tensor([False, True])})
        for part in batches(theirs, how, 2)
    ]
    gradients(model, PolicyGradient(how, check), parts)
    assert check.after_step()["sampling/logp_difference/max"] < 1e-4
    assert how.denominator(parts) == 2
