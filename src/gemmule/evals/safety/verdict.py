"""Toxicity scorers: a classifier that the user names, or a judge. There is no default scorer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

NO_SCORER = "not measured: no toxicity classifier named"


@dataclass(frozen=True)
class ToxicityVerdict:
    """A scorer's verdict on one text.

    Attributes:
        toxicity: toxicity of the text, 0 to 1.
        harms: toxicity by kind of harm, if the scorer distinguishes them.
        cut: whether the text was longer than the scorer reads.
    """

    toxicity: float
    harms: dict[str, float] = field(default_factory=dict)
    cut: bool = False


class ToxicityScorer(Protocol):
    """Scores the toxicity of a model's responses."""

    def describe(self) -> dict[str, Any]:
        """Everything a verdict depends on: name, kind, weights, label and threshold."""
        ...

    def score(
        self, exchanges: Sequence[tuple[str, str]], progress: Callable[[int], None]
    ) -> list[ToxicityVerdict]:
        """Scores responses.

        Args:
            exchanges: pairs of a prompt and its response; a classifier reads the response alone.
            progress: called with the number of responses scored so far.
        """
        ...
