"""Figures that others want to follow while a model is trained.

The loop knows nothing of them: it evaluates the model at the given steps and logs what comes out. A
probe must leave the model and torch's random numbers as they are, so that training ends in the same
weights with and without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gemmule.data.dataset import Dataset
from gemmule.model.gemma import Gemma
from gemmule.train.config import TrainConfig


@dataclass(frozen=True)
class Probe:
    """Something to measure now and then.

    Attributes:
        name: what its lines in metrics.jsonl have as "probe", and its group in TensorBoard.
        every: steps between measurements; there is one after the last step, too.
        measure: given the number of finished steps, figures of the model as it is.
    """

    name: str
    every: int
    measure: Callable[[int], Mapping[str, float]]


# From settings, the model to be trained and its data; None where the settings ask for nothing.
MakeProbe = Callable[[TrainConfig, Gemma, Dataset], Probe | None]
