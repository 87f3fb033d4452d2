"""Settings of a mixture: the groups `data.mixture` and `data.stages` of a run."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from pydantic import Field

from gemmule.config import Config, nearest


class MixtureSource(Config):
    """One data folder of a mixture.

    Attributes:
        path: folder made by `gemmule data`.
        name: name in tables, metrics and stages; None: the folder's name.
        weight: share of the windows relative to the other sources' weights; 0 for a source that
            only a stage reads.
        max_epochs: how often the folder may be read at most; None: as often as its weight asks.
    """

    path: Path
    name: str | None = Field(default=None, min_length=1)
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    max_epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @property
    def shown_name(self) -> str:
        """The name, given or that of the folder."""
        return self.name or self.path.resolve().name


class MixtureStage(Config):
    """A part of a run, at its end or before the stages that follow, with other weights.

    Attributes:
        share: share of the run's steps.
        weights: weights by the sources' names; a source that is not named keeps its own.
    """

    share: float = Field(gt=0, le=1)
    weights: dict[str, float]


def problem(sources: Sequence[MixtureSource], stages: Sequence[MixtureStage]) -> str | None:
    """What is wrong with the settings of a mixture as they stand; None if nothing is."""
    names = [source.shown_name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        return f"two sources of the mixture are called {twice!r}: give one another name"
    if not any(source.weight for source in sources):
        return "every source of the mixture has weight 0: give one a weight above 0"
    for stage in stages:
        for name, weight in stage.weights.items():
            if name not in names:
                return f"a stage has a weight for {name!r}, and {nearest(name, names)}"
            if not 0 <= weight < float("inf"):
                return f"a stage gives {name!r} the weight {weight}: use 0 or more"
        if not any(stage_weights(sources, stage).values()):
            return "every source has weight 0 in a stage: give one a weight above 0"
    total = sum(exact(stage.share) for stage in stages)
    if total > 1:
        return f"the shares of the stages add up to {float(total):g}: use at most 1"
    return None


def stage_weights(
    sources: Sequence[MixtureSource], stage: MixtureStage | None
) -> Mapping[str, float]:
    """The weight of each source by name in a stage; None: before the first stage."""
    own = {source.shown_name: source.weight for source in sources}
    return own if stage is None else {**own, **stage.weights}


def exact(value: float) -> Fraction:
    """A number as it was written: 0.1 is one tenth."""
    return Fraction(repr(float(value)))
