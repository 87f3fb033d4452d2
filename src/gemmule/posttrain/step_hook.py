"""What runs on sampled answers do after each optimizer step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gemmule.model.gemma import Gemma
from gemmule.posttrain.anchor import Anchor


class Measured(Protocol):
    """A part of a run that has something to log of each step."""

    def after_step(self) -> Mapping[str, float]:
        """Metrics of the step that has ended; called once a step."""
        ...


@dataclass(frozen=True)
class AnswerHook:
    """A `StepHook`: moves the anchor and collects the metrics of a step.

    Attributes:
        parts: what has metrics.
        model: the model that is trained.
        anchor: model that it is kept close to; None: there is none.
    """

    parts: Sequence[Measured]
    model: Gemma
    anchor: Anchor | None = None

    def after_step(self) -> dict[str, float]:
        """Moves the anchor; returns the metrics of all parts."""
        if self.anchor is not None:
            self.anchor.update(self.model)
        return {name: value for part in self.parts for name, value in part.after_step().items()}

    def tensors(self) -> Mapping[str, Tensor]:
        """The weights of a moving anchor."""
        return {} if self.anchor is None else self.anchor.tensors()
