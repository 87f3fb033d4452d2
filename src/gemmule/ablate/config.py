"""Settings of a sweep; saved with it, so that it continues with the same ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pydantic
from pydantic import Field

from gemmule.ablate.ablations import find
from gemmule.config import Config, ModelName
from gemmule.errors import ConfigError
from gemmule.train.config import grouped, load_run_config

# What a sweep decides itself, and the option that does.
DECIDED = {
    "data.path": "--data",
    "model.preset": "--student",
    "steps": "--tokens",
    "seed": "--seeds",
    "data.mixture": "--source",
    "data.stages": "--weights",
    "objective.kind": "the ablation",
    "objective.teacher": "--teacher",
    "objective.targets": "--teacher",
}


class SweepConfig(Config):
    """One ablation at one scale.

    Attributes:
        ablation: name of the ablation.
        data: folder made by `gemmule data`; in "mixture", the first source.
        sources: data folders of "mixture".
        weights: what "mixture" compares: a weight for each source; (): see `default_weights`.
        teacher: run, HF-layout folder or hub id; None trains one as part of the sweep.
        teacher_size: preset of a teacher that is trained.
        teacher_tokens: training tokens of a teacher that is trained.
        online: whether students learn from the teacher itself where a record of it would do.
        student: size of the ladder, or preset; None: the ablation's default.
        largest: preset of the largest model from scratch in "size".
        seeds: number of seeds per variant: 0, 1, …
        tokens: training tokens of each student, rounded up to whole steps.
        settings: settings of every student's training, and of a trained teacher's except its shape.
        data_fingerprint: fingerprint of the data that the sweep began with.
        teacher_fingerprint: fingerprint of the weights of `teacher`.
    """

    ablation: str
    data: Path
    sources: tuple[Path, ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()
    teacher: ModelName | None = None
    teacher_size: str = "3m"
    teacher_tokens: int = Field(default=900_000, gt=0)
    online: bool = False
    student: str | None = None
    largest: str = "3m"
    seeds: int = Field(default=3, gt=0, le=1000)
    tokens: int = Field(default=300_000, gt=0)
    settings: dict[str, Any] = Field(default_factory=dict)
    data_fingerprint: str | None = None
    teacher_fingerprint: str | None = None

    @pydantic.field_validator("settings")
    @classmethod
    def _in_groups(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Sweeps of earlier versions saved their settings flat."""
        return _without_kind(grouped(settings))

    @pydantic.model_validator(mode="after")
    def _ladder_is_wanted(self) -> Self:
        if self.largest != type(self).model_fields["largest"].default and self.ablation != "size":
            raise ValueError(f"{self.ablation} has no ladder of sizes: leave --largest out")
        return self

    @pydantic.model_validator(mode="after")
    def _sources_are_wanted(self) -> Self:
        if self.ablation != "mixture":
            if self.sources or self.weights:
                raise ValueError(f"{self.ablation} reads one folder: give --data, not --source")
            return self
        if len(self.sources) < 2:
            raise ValueError("mixture compares weights of several folders: give --source twice")
        for weights in self.weights:
            shown = shown_weights(weights)
            if len(weights) != len(self.sources):
                raise ValueError(
                    f"--weights {shown} has {len(weights)} weights for {len(self.sources)} sources"
                )
            if min(weights) < 0 or not any(weights):
                raise ValueError(f"--weights {shown}: use 0 or more, and one weight above 0")
        if len(set(map(shown_weights, self.weights))) < len(self.weights):
            raise ValueError("--weights has the same weights twice: leave one out")
        return self

    @pydantic.model_validator(mode="after")
    def _teacher_is_wanted(self) -> Self:
        if self.teacher is None:
            return self
        if not find(self.ablation).teaches:
            raise ValueError(f"{self.ablation} has no teacher: leave --teacher out")
        if self.ablation == "teacher":
            raise ValueError("this ablation trains teachers of several sizes: leave --teacher out")
        return self


def default_weights(sources: int) -> tuple[tuple[float, ...], ...]:
    """Weights spread over the simplex: equal, each source doubled, and each source alone."""
    numbers = range(sources)
    doubled = [tuple(2.0 if n == one else 1.0 for n in numbers) for one in numbers]
    alone = [tuple(1.0 if n == one else 0.0 for n in numbers) for one in numbers]
    return (1.0,) * sources, *doubled, *alone


def shown_weights(weights: Sequence[float]) -> str:
    """Weights as they are typed: 3:1."""
    return ":".join(f"{weight:g}" for weight in weights)


def parsed_weights(text: str) -> tuple[float, ...]:
    """Weights from "3:1".

    Raises:
        ConfigError: when they are not numbers.
    """
    try:
        return tuple(float(weight) for weight in text.split(":"))
    except ValueError:
        raise ConfigError(
            f"--weights {text!r}: write a number for each source, in their order, as in 3:1"
        ) from None


def given_settings(overrides: Sequence[str], data: Path) -> dict[str, Any]:
    """The nested settings that --set asks for.

    Raises:
        ConfigError: for a setting that does not exist, or that the sweep decides itself.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in DECIDED:
            raise ConfigError(f"--set {key}: a sweep takes {DECIDED[key]} for it")
    own = {
        "data.path": str(data),
        "steps": 1,
        "objective.kind": "distill",
        "objective.teacher": "x",
    }
    values = [f"{key}={value!r}" for key, value in own.items()]
    config = load_run_config(None, [*values, *overrides])
    settings = config.model_dump(mode="json", exclude_unset=True)
    for key in own:
        group, _, name = key.rpartition(".")
        del (settings[group] if group else settings)[name]
    return {key: value for key, value in settings.items() if value != {}}


def save_or_compare(config: SweepConfig, path: Path) -> None:
    """Saves the settings of a new sweep at `path`, or checks that a begun one had the same.

    Where data and teacher lie may change; what they are may not. `largest` only adds or leaves out
    cells, so that it may change, too.

    Raises:
        ConfigError: naming every setting that differs.
    """
    if not path.is_file():
        config.save(path)
        return
    saved = SweepConfig.load(path)
    differences = [
        f"{name} was {_shown(was)} and is {_shown(now)}"
        for name, was, now in _unlike(saved.model_dump(mode="json"), config.model_dump(mode="json"))
    ]
    if differences:
        raise ConfigError(
            f"{path.parent} holds a sweep with other settings: {'; '.join(differences)}. Give the "
            "same ones to continue it, or choose another folder with --out"
        )
    if saved.largest != config.largest:
        config.save(path)


def _unlike(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    free = {"data", "largest"}
    if was["teacher"] and now["teacher"]:
        free.add("teacher")
    return [(k, was[k], now[k]) for k in now if k not in free and was[k] != now[k]]


def _shown(value: Any) -> str:
    return "unset" if value in (None, {}) else str(value)


def _without_kind(settings: dict[str, Any]) -> dict[str, Any]:
    objective = {k: v for k, v in settings.get("objective", {}).items() if k != "kind"}
    rest = {k: v for k, v in settings.items() if k != "objective"}
    return {**rest, "objective": objective} if objective else rest
