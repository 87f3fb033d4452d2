"""From rollouts to weights: cut answers, distance from the anchor, J-BOND's two answers."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.errors import DataError
from gemmule.losses.labels import IGNORED
from gemmule.posttrain.advantages import leave_one_out, standardized
from gemmule.posttrain.objectives.policy_gradient import FROM_ANCHOR, LossType, Normalization
from gemmule.posttrain.rewarded_steps import GroupSteps, JBondSteps, Rewarding
from gemmule.posttrain.rewards.protocol import Answer
from gemmule.posttrain.rollouts import Group, Rollout, RolloutPrompt


class Length:
    """The number of letters; remembers what it was asked."""

    name = "length"

    def __init__(self, value: float | None = None) -> None:
        self.asked: list[str] = []
        self._value = value

    def score(self, answers: Sequence[Answer]) -> list[float]:
        self.asked += [answer.text for answer in answers]
        return [len(a.text) if self._value is None else self._value for a in answers]

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


class FlatAnchor:
    """A model under which every token has log-probability -2."""

    def answer_logprobs(self, batch: Batch) -> Tensor:
        return -2.0 * (batch.labels_BT != IGNORED).sum(-1).double()


def rollout(text: str, logprob: float = -1.0, finished: bool = True) -> Rollout:
    answer = (*range(300, 300 + len(text)), *((107,) if finished else ()))
    return Rollout((2, 200), answer, (logprob,) * len(answer), text, finished)


def group(*texts: str | Rollout, position: int = 0) -> Group:
    rollouts = tuple(t if isinstance(t, Rollout) else rollout(t) for t in texts)
    return Group(RolloutPrompt((2, 200), {}), rollouts, position)


def rewarding(
    reward: Length, beta: float = 0.0, loss_type: LossType = "rloo", anchor: bool = False
) -> Rewarding:
    how = Normalization(loss_type, 9)
    return Rewarding(reward, -5.0, FlatAnchor() if anchor else None, beta, how, 2)  # type: ignore[arg-type]


def answer_weights(batches: Sequence[Batch]) -> list[float]:
    """The weight of each answer; that of its tokens is one number, and of all others 0."""
    values = []
    for batch in batches:
        assert batch.weights_BT is not None
        for weights, labels in zip(batch.weights_BT, batch.labels_BT, strict=True):
            (value,) = {round(w, 5) for w in weights[labels != IGNORED].tolist()}
            values.append(value)
            assert not weights[labels == IGNORED].any()
    return values


def test_cut_answers_are_counted_and_not_shown_to_the_reward() -> None:
    reward = Length()
    steps = GroupSteps(rewarding(reward), leave_one_out, leave_one_out)
    cut = rollout("abcdef", finished=False)
    batches = steps.build([group("a", cut), group("abc", "abcd")])
    assert reward.asked == ["a", "abc", "abcd"]
    assert answer_weights(batches) == [6.0, -6.0, -1.0, 1.0]
    assert steps.metrics["reward"] == pytest.approx((1 - 5 + 3 + 4) / 4)
    assert steps.metrics["completions/clipped_ratio"] == 0.25
    assert steps.metrics["completions/mean_length"] == (2 + 6 + 4 + 5) / 4
    assert steps.metrics["entropy"] == 1.0


def test_the_log_ratio_to_the_anchor_is_taken_off_the_reward() -> None:
    """Of all tokens of the answer, its stop token included, and of none of the prompt's."""
    steps = GroupSteps(rewarding(Length(), 0.5, anchor=True), leave_one_out, leave_one_out)
    batches = steps.build([group("a", "abc")])
    # Tokens 2 and 4, each 1 nat above the anchor: rewards 1 - 0.5 * 2 and 3 - 0.5 * 4.
    assert answer_weights(batches) == [-1.0, 1.0]
    assert steps.metrics["kl"] == 3.0


def test_a_standard_deviation_never_divides_the_log_ratio() -> None:
    """Equal rewards: a deviation of the penalized ones would make the penalty as large as any."""
    steps = GroupSteps(rewarding(Length(1.0), 0.01, anchor=True), standardized, leave_one_out)
    batches = steps.build([group("a", "abc")])
    assert answer_weights(batches) == [0.02, -0.02]
    assert steps.metrics["frac_reward_zero_std"] == 1.0


def test_grpo_weighs_the_tokens_of_an_answer_by_its_length() -> None:
    steps = GroupSteps(rewarding(Length(), loss_type="grpo"), leave_one_out, leave_one_out)
    assert answer_weights(steps.build([group("a", "abc")])) == [-2 / 2, 2 / 4]


def test_jbond_imitates_the_better_of_two_and_weighs_its_own_answer() -> None:
    class Anchors:
        def sample(self, prompts: Any, positions: Sequence[int]) -> list[Group]:
            assert [*positions] == [4, 7]
            return [group("ab", "abcd", position=4), group("abc", "a", position=7)]

    steps = JBondSteps(rewarding(Length(), anchor=True), Anchors(), 0.25)  # type: ignore[arg-type]
    own = [group("a", position=4), group("ab", position=7)]
    batches = steps.build(own)
    lengths = [(b.labels_BT != IGNORED).sum(-1).tolist() for b in batches]
    assert lengths == [[2, 5], [3, 4]]  # own answer, then the better one
    first, second = -math.log(16) - 2, -3.0  # returns: the reward, less the log ratio
    expected = [0.25 * (first - second), 0.75, 0.25 * (second - first), 0.75]
    assert answer_weights(batches) == pytest.approx(expected, abs=1e-4)
    assert all(b.extras[FROM_ANCHOR].tolist() == [False, True] for b in batches)
    assert steps.metrics["reward/best_of_two"] == 3.5


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_reward_that_is_not_finite_is_refused(value: float) -> None:
    steps = GroupSteps(rewarding(Length(value)), leave_one_out, leave_one_out)
    with pytest.raises(DataError, match="rewards must be finite numbers"):
        steps.build([group("a", "b")])


def test_weights_do_not_depend_on_the_micro_batch() -> None:
    groups = [group("a", "abc"), group("abcd", "ab")]
    weights = []
    for rows in (1, 2, 4):
        how = rewarding(Length(), 0.1, anchor=True)
        how = Rewarding(how.reward, 0.0, how.anchor, how.beta, how.normalization, rows)
        batches = GroupSteps(how, leave_one_out, leave_one_out).build(groups)
        assert [len(batch.tokens_BT) for batch in batches] == [rows] * (4 // rows)
        weights.append(answer_weights(batches))
    assert weights[0] == weights[1] == weights[2]
    assert torch.tensor(weights[0]).any()
