"""What a reward is given, and what it returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
