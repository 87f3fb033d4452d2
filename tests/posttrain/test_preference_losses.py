"""Losses of preferences, against the formulas of their papers written out with Python's floats."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gemmule.posttrain.preference_losses import Answers, KTOLoss, PairLoss

BETA, SMOOTH, GAMMA = 0.3, 0.2, 0.7
CHOSEN = {"log_p": -31.0, "reference": -33.5, "length": 12.0}
REJECTED = {"log_p": -20.0, "reference": -18.0, "length": 5.0}


def answers(*rows: dict[str, float]) -> Answers:
    columns = zip(*((r["log_p"], r["reference"], r["length"]) for r in rows), strict=True)
    return Answers(*(torch.tensor(c, dtype=torch.float64) for c in columns))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


H = (-31.0 + 33.5) - (-20.0 + 18.0)
EXPECTED = {
    "dpo": -log_sigmoid(BETA * H),
    "ipo": ((-31.0 + 33.5) / 12 - (-20.0 + 18.0) / 5 - 1 / (2 * BETA)) ** 2,
    "simpo": -log_sigmoid(BETA * (-31 / 12 + 20 / 5) - GAMMA),
}


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo"])
def test_pair_losses(method: str) -> None:
    loss = PairLoss(method, BETA, gamma=GAMMA if method == "simpo" else 0.0)  # type: ignore[arg-type]
    value = loss.losses(answers(CHOSEN), answers(REJECTED))
    assert value.tolist() == pytest.approx([EXPECTED[method]], rel=1e-12)


def test_label_smoothing_is_conservative_dpo() -> None:
    loss = PairLoss("dpo", BETA, SMOOTH).losses(answers(CHOSEN), answers(REJECTED)).item()
    swapped = -log_sigmoid(-BETA * H)
    expected = (1 - SMOOTH) * EXPECTED["dpo"] + SMOOTH * swapped
    assert loss == pytest.approx(expected, rel=1e-12)


def test_kto() -> None:
    loss = KTOLoss(BETA, desirable_weight=2.0, undesirable_weight=3.0)
    good = torch.tensor([True, False])
    values = loss.losses(answers(CHOSEN, REJECTED), good, torch.tensor(0.9, dtype=torch.float64))
    expected = [
        2 * (1 - 1 / (1 + math.exp(-BETA * (2.5 - 0.9)))),
        3 * (1 - 1 / (1 + math.exp(-BETA * (0.9 + 2.0)))),
    ]
    assert values.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_baseline_of_kto_gets_no_gradient() -> None:
    baseline = torch.tensor(0.9, requires_grad=True)
    policy = answers(CHOSEN)
    policy.log_p_S.requires_grad_()
    KTOLoss(BETA).losses(policy, torch.tensor([True]), baseline).sum().backward()
    assert baseline.grad is None
    assert policy.log_p_S.grad is not None


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (PairLoss("dpo", 0.1), math.log(2)),
        (PairLoss("dpo", 0.1, 0.3), math.log(2)),
        (PairLoss("ipo", 0.1), 25.0),
    ],
)
def test_a_policy_that_equals_its_reference(loss: PairLoss, expected: float) -> None:
    same = [{"log_p": -x, "reference": -x, "length": 7.0} for x in (1234.56789, 0.1)]
    assert loss.losses(answers(same[0]), answers(same[1])).item() == expected
    assert loss.rewards(answers(*same)).tolist() == [0.0, 0.0]


def gradient(loss: Callable[[Answers, Answers], Tensor]) -> list[float]:
    chosen, rejected = answers(CHOSEN), answers(REJECTED)
    for side in (chosen, rejected):
        side.log_p_S.requires_grad_()
    loss(chosen, rejected).sum().backward()
    grads = (chosen.log_p_S.grad, rejected.log_p_S.grad)
    return [grad.item() for grad in grads if grad is not None]


def test_gradient_of_dpo_is_the_papers() -> None:
    """Equation 8: beta sigma(r_l - r_w) on the chosen answer, and minus that on the other."""
    weight = BETA / (1 + math.exp(BETA * H))
    both = gradient(PairLoss("dpo", BETA).losses)
    assert both == pytest.approx([-weight, weight], rel=1e-12)


def test_simpo_depends_on_length_and_not_on_the_reference() -> None:
    loss = PairLoss("simpo", 2.0, gamma=1.0)
    moved = {**CHOSEN, "reference": 5.0}
    longer = {**CHOSEN, "length": 24.0}
    values = [loss.losses(answers(a), answers(REJECTED)).item() for a in (CHOSEN, moved, longer)]
    assert values[0] == values[1] != values[2]
