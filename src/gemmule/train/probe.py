"""Measurements of the model while it is trained.

The loop knows nothing about them: it calls each at its steps and logs the metrics that come out.
Evaluation on validation text is one of them. A probe must leave the model and torch's random state
as they are, so that training ends in the same weights with and without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gemmule.data.dataset import Dataset
from gemmule.model.gemma import Gemma
from gemmule.train.config import RunConfig


@dataclass(frozen=True)
class Probe:
    """A measurement repeated during training; the model is in evaluation mode.

    Attributes:
        name: value of `label` in its lines of metrics.jsonl, and group of its TensorBoard curves.
        every: steps between measurements; there is always one after the last step.
        measure: function from the number of finished steps to metrics of the model as it is.
        label: key under which its lines have the name: "split" for evaluations of a split.
        best: metric whose lowest value marks the run's best state; None: it does not judge states.
    """

    name: str
    every: int
    measure: Callable[[int], Mapping[str, float]]
    label: Literal["probe", "split"] = "probe"
    best: str | None = None


# From a run's settings, its model and its data to a probe; None where the settings ask for none.
MakeProbe = Callable[[RunConfig, Gemma, Dataset], Probe | None]
