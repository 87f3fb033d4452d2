"""Settings of a mixture: the groups `data.mixture` and `data.stages` of a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from pydantic import Field

from gemmule.config import Config, nearest


class MixtureSource(Config):
    """One data folder of a mixture, or one source of a folder that a recipe made.

    Attributes:
        path: folder made by `gemmule data`.
        source: name of a source in the folder's recipe; None: the whole folder.
        name: name in tables, metrics and stages; None: that of the source or of the folder.
        weight: share of the windows relative to the other sources' weights; 0 for a source that
            only a stage reads.
        max_epochs: how often the folder may be read at most; None: as often as its weight asks.
    """

    path: Path
    source: str | None = None
    name: str | None = Field(default=None, min_length=1)
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @property
    def shown_name(self) -> str:
        """The name, given or that of the source or folder."""
        return self.name or self.source or self.path.resolve().name


class MixtureStage(Config):
    """A part of a run, at its end or before the stages that follow, with other weights.

    Attributes:
        share: share of the run's steps.
        weights: weights by the sources' names; a source that is not named keeps its own.
    """

    share: float = Field(gt=0, le=1)
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


def check(sources: Sequence[MixtureSource], stages: Sequence[MixtureStage]) -> None:
    """Checks the settings of a mixture against each other.

    Raises:
        ValueError: saying what is wrong and what is allowed.
    """
    names = [source.shown_name for source in sources]
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"two sources of the mixture are called {name!r}: name one of them")
    if not any(source.weight for source in sources):
        raise ValueError("every source of the mixture has weight 0: give one a weight above 0")
    for stage in stages:
        for name in stage.weights:
            if name not in names:
                raise ValueError(f"a stage has a weight for {name!r}; {nearest(name, names)}")
        if not any(stage_weights(sources, stage).values()):
            raise ValueError("every source has weight 0 in a stage: give one a weight above 0")
    total = sum(exact(stage.share) for stage in stages)
    if total > 1:
        raise ValueError(f"the shares of the stages add up to {float(total):g}: use at most 1")


def stage_weights(
    sources: Sequence[MixtureSource], stage: MixtureStage | None
) -> Mapping[str, float]:
    """The weight of each source by name in a stage; None: before the first stage."""
    own = {source.shown_name: source.weight for source in sources}
    return own if stage is None else {**own, **stage.weights}


def exact(value: float) -> Fraction:
    """A number as it was written: 0.1 is one tenth."""
    return Fraction(repr(float(value)))
