"""What a plan is asked about."""

import math
from pathlib import Path
from typing import Self

import pydantic
from pydantic import Field

from gemmule.config import Config
from gemmule.model.config import GemmaConfig
from gemmule.plan.calibrate import SECONDS
from gemmule.train.config import RunConfig, load_run_config

# Settings that a plan has itself.
_PLANNED = ("data.path", "model", "objective", "steps")
TOKENS_PER_PARAMETER = 20  # the usual rule (Hoffmann et al. 2022), where no length was asked for


class PlanRequest(Config):
    """Settings of a plan.

    Attributes:
        teacher: preset, or run or model folder.
        student: the same.
        data: the corpus, made by `gemmule data`; None where there is none yet.
        vocab_size: of presets, where there is no corpus.
        tokens: to train the student on; or instead of it
        steps: optimiser steps. Neither: 20 tokens for each parameter without the embedding.
        teacher_tokens: what a preset's teacher is trained on; None: 20 for each parameter.
        students: how many are to learn from one record of the teacher.
        runs: folders of measured runs, which correct the scaling law.
        settings: of the run, as in `gemmule train --set`: "data.batch_size=16".
        calibration_seconds: how long measuring may take.
    """

    teacher: str
    student: str
    data: Path | None = None
    vocab_size: int | None = Field(default=None, ge=16)
    tokens: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    teacher_tokens: int | None = Field(default=None, gt=0)
    students: int = Field(default=1, ge=1)
    runs: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()
    calibration_seconds: float = Field(default=SECONDS, gt=0, le=3600, allow_inf_nan=False)

    @pydantic.model_validator(mode="after")
    def _one_length_one_vocabulary(self) -> Self:
        if self.tokens is not None and self.steps is not None:
            raise ValueError("give either tokens or steps, not both")
        if self.data is not None and self.vocab_size is not None:
            raise ValueError("vocab_size is for plans without data: the corpus has its own")
        return self

    @pydantic.model_validator(mode="after")
    def _settings_are_of_the_run(self) -> Self:
        for setting in self.settings:
            key = setting.partition("=")[0].strip()
            if any(key == own or key.startswith(f"{own}.") for own in _PLANNED):
                raise ValueError(
                    f"{setting!r}: {key} is no setting of a plan; say it with --teacher, "
                    "--student, --data, --tokens or --steps"
                )
        return self

    def train_config(self, student: GemmaConfig) -> RunConfig:
        """The training run that is planned.

        Raises:
            ConfigError: for a setting that does not exist or is out of range.
        """
        first = load_run_config(None, ["steps=1", 'data.path="none"', *self.settings])
        wanted = self.tokens or TOKENS_PER_PARAMETER * student.non_embedding_parameters
        steps = self.steps or math.ceil(wanted / first.data.tokens_per_step)
        data = first.data.model_copy(update={"path": self.data or Path("none")})
        return first.model_copy(update={"steps": steps, "data": data})
