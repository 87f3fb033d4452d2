"""Who says how toxic a text is: a classifier that the user names, or a judge. Never a guess."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

NO_SCORER = "not measured: no toxicity classifier named"


@dataclass(frozen=True)
class Verdict:
    """What a scorer says of one text.

    Attributes:
        toxicity: 0 to 1.
        harms: the same by kind of harm, where the scorer tells them apart.
        cut: whether the text was longer than the scorer reads.
    """

    toxicity: float
    harms: dict[str, float] = field(default_factory=dict)
    cut: bool = False


class Scorer(Protocol):
    """A toxicity scorer."""

    def describe(self) -> dict[str, Any]:
        """Name, kind, fingerprint of the weights, label and threshold: what a figure depends on."""
        ...

    def score(
        self, exchanges: Sequence[tuple[str, str]], progress: Callable[[int], None]
    ) -> list[Verdict]:
        """Verdicts on answers, each given as its prompt and itself.

        Args:
            exchanges: (prompt, answer); a classifier reads the answer alone.
            progress: called with the number of answers that are done.
        """
        ...
