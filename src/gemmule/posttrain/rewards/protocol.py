"""What a reward is given, and what it returns."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gemmule.errors import DataError


@dataclass(frozen=True)
class Answer:
    """An answer to be rewarded.

    Attributes:
        text: its text, without control tokens.
        record: fields of the prompt's record, such as the reference answer.
        prompt: ids of the prompt.
        ids: ids of the answer, its stop token included.
        finished: whether the model ended it; False if a limit cut it.
    """

    text: str
    record: Mapping[str, Any]
    prompt: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    finished: bool = True


class Reward(Protocol):
    """Scores answers; the score of an answer does not depend on the others.

    Attributes:
        name: name in metrics and settings.
    """

    name: str

    def score(self, answers: Sequence[Answer]) -> list[float]:
        """A finite number for each answer, the higher the better.

        Raises:
            UserError: when a record lacks what the reward compares with, or the user's function
                fails.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """The entry of manifest.json: "name", and what else defines the scores."""
        ...


def scores(reward: Reward, answers: Sequence[Answer], cut_reward: float) -> list[float]:
    """The reward of each answer; one that a limit cut is not scored.

    Args:
        reward: scores the answers that the model has ended.
        answers: the answers.
        cut_reward: reward of an answer that a limit cut, whatever it says.

    Raises:
        DataError: for a reward that is not finite.
        UserError: as the reward's.
    """
    ended = iter(reward.score([answer for answer in answers if answer.finished]))
    values = [next(ended) if answer.finished else cut_reward for answer in answers]
    for answer, value in zip(answers, values, strict=True):
        if not math.isfinite(value):
            raise DataError(
                f"the reward {reward.name} of the answer {answer.text!r} is {value}: rewards must "
                "be finite numbers"
            )
    return values
