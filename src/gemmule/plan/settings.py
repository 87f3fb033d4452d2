"""Settings of a plan."""

import math
from pathlib import Path
from typing import Self

import pydantic
from pydantic import Field

from gemmule.config import Config, ModelName
from gemmule.model.config import GemmaConfig
from gemmule.plan.calibrate import SECONDS
from gemmule.train.config import RunConfig, load_run_config

# Settings that a plan has itself.
_PLANNED = ("data.path", "model", "objective", "steps")
TOKENS_PER_PARAMETER = 20  # the usual rule (Hoffmann et al. 2022), if no length is given


class PlanRequest(Config):
    """Settings of a plan.

    Attributes:
        teacher: preset, or run or model folder.
        student: preset, or run or model folder.
        data: folder made by `gemmule data`; None if there is none yet.
        vocab_size: vocabulary size of presets, if there is no corpus.
        tokens: training tokens of the student.
        steps: optimizer steps, in place of `tokens`. With neither: 20 tokens per parameter without
            the embedding.
        teacher_tokens: training tokens of a preset's teacher; None: 20 per parameter.
        students: number of students that share one recorded teacher.
        runs: folders of finished runs, to which the scaling law is fitted.
        settings: settings of the run, as in `gemmule train --set`: "data.batch_size=16".
        calibration_seconds: maximum duration of the measurements.
        max_wh, max_gco2e: budget of energy or carbon, for which the best loss is looked for.
        nproc: processes of this machine that share each batch; their exchange is timed.
    """

    teacher: ModelName
    student: ModelName
    data: Path | None = None
    vocab_size: int | None = Field(default=None, ge=16)
    tokens: int | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    teacher_tokens: int | None = Field(default=None, gt=0)
    students: int = Field(default=1, ge=1)
    runs: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()
    calibration_seconds: float = Field(default=SECONDS, gt=0, le=3600, allow_inf_nan=False)
    max_wh: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_gco2e: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    nproc: int = Field(default=1, ge=1, le=64)

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
                    f"{setting!r}: {key} is not a setting of a plan: use --teacher, "
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
