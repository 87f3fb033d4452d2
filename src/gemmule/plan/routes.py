"""Time, energy and compute of each way to train the student, from the calibration."""

import copy
from dataclasses import dataclass
from typing import Any

from gemmule.plan.calibrate import Calibration, Measurement
from gemmule.train.config import RunConfig

STORED_OVER_SCRATCH = 1.02  # step time with stored targets over that from scratch


@dataclass(frozen=True)
class Corpus:
    """Number of tokens of each split of the corpus; 0 if there is none yet."""

    train: int
    validation: int
    heldout: int


@dataclass(frozen=True)
class Route:
    """One way to train the student, and its cost.

    Attributes:
        name: name in tables and JSON.
        tokens: training tokens of the student; for a recording, recorded tokens.
        flops: floating-point operations, forward and backward.
        seconds: duration of the whole command.
        steady_seconds: the part of it for optimizer steps or the teacher's passes.
        energy_wh, gco2e: energy and carbon; None if the meter cannot measure them.
    """

    name: str
    tokens: float
    flops: float
    seconds: float
    steady_seconds: float
    energy_wh: float | None
    gco2e: float | None

    def to_json(self) -> dict[str, Any]:
        """The numbers, rounded."""
        wh, grams = (None if x is None else round(x, 4) for x in (self.energy_wh, self.gco2e))
        return {
            "tokens": round(self.tokens), "flops": self.flops,
            "seconds": round(self.seconds, 2), "steady_seconds": round(self.steady_seconds, 2),
            "hours": round(self.seconds / 3600, 4), "energy_wh": wh, "gco2e": grams,
        }  # fmt: skip


class Clock:
    """Turns a run's settings into seconds.

    Args:
        calibration: the calibration.
        config: settings of the run.
        corpus: sizes of the corpus.
        student_flops, teacher_flops: FLOPs of a forward pass per token.
    """

    def __init__(
        self, calibration: Calibration, config: RunConfig, corpus: Corpus,
        student_flops: float, teacher_flops: float,
    ) -> None:  # fmt: skip
        self.calibration, self.config, self.corpus = calibration, config, corpus
        self.student_flops, self.teacher_flops = student_flops, teacher_flops
        self.scratch = calibration.scratch or self._guessed()
        self.teacher = calibration.teacher or self._at_training_speed()
        self.distill = calibration.distill or self._composed()

    @property
    def step_flops(self) -> float:
        """FLOPs per token of training from scratch."""
        return 3 * self.student_flops

    def resized(self, student_flops: float) -> "Clock":
        """The clock of another student: its steps take as long as their FLOPs say."""
        other = copy.copy(self)
        factor = student_flops / self.student_flops
        other.student_flops = student_flops
        other.scratch = {
            **self.scratch,
            "step_seconds": factor * self.scratch["step_seconds"],
            "evaluation_seconds_per_token": factor * self.scratch["evaluation_seconds_per_token"],
        }
        if factor == 1:
            return other
        # What online distillation adds to a step is the teacher's part.
        teacher = max(0.0, self.distill["step_seconds"] - self.scratch["step_seconds"])
        other.distill = {
            **self.distill,
            "step_seconds": other.scratch["step_seconds"] + teacher,
            "evaluation_seconds_per_token": other.scratch["evaluation_seconds_per_token"],
        }
        return other

    def train(self, name: str, tokens: float, *, online: bool = False, factor: float = 1) -> Route:
        """A training run: start, compilation, steps, evaluations, saving, final evaluation."""
        c, step = self.config, self.distill if online else self.scratch
        steps = max(1, round(tokens / c.data.tokens_per_step))
        steady = factor * steps * step["step_seconds"]
        validation = min(c.evaluation.tokens, self.corpus.validation)
        evaluations = -(-steps // c.evaluation.every)
        heldout = min(c.evaluation.heldout_tokens or self.corpus.heldout, self.corpus.heldout)
        each = float(step["evaluation_seconds_per_token"])
        evaluated = (evaluations * validation + heldout) * each
        saves = max(steps // c.checkpoint.every, int(steady // (60 * c.checkpoint.minutes)))
        seconds = self._start(online) + step["compile_seconds"] + step["overhead_seconds"]
        seconds += steady + evaluated + saves * step["save_seconds"]
        flops = tokens * (self.step_flops + (self.teacher_flops if online else 0))
        return self._route(name, tokens, flops, seconds, steady, step)

    def record(self, name: str, tokens: float) -> Route:
        """Recording the teacher once."""
        each = float(self.teacher["record_seconds_per_token"])
        steady, flops = tokens * each, tokens * self.teacher_flops
        seconds = self._start(True) + self.scratch["overhead_seconds"] + steady
        return self._route(name, tokens, flops, seconds, steady, self.scratch)

    def _start(self, with_teacher: bool) -> float:
        load = self.teacher.get("load_seconds", 0.0) if with_teacher else 0.0
        return float(self.calibration.start["seconds"] + load)

    def _route(
        self,
        name: str,
        tokens: float,
        flops: float,
        seconds: float,
        steady: float,
        step: Measurement,
    ) -> Route:
        watts, grid = step.get("watts"), step.get("grid_gco2e_per_kwh")
        wh = None if watts is None else float(watts) * seconds / 3600
        grams = None if wh is None or grid is None else wh * float(grid) / 1000
        return Route(name, tokens, flops, seconds, steady, wh, grams)

    def _guessed(self) -> Measurement:
        """A step of training from scratch at half the speed of matrix products."""
        forward = self.student_flops / (0.5e9 * self.calibration.gflops)
        return {
            "step_seconds": 3 * forward * self.config.data.tokens_per_step, "compile_seconds": 0.0,
            "evaluation_seconds_per_token": forward, "overhead_seconds": 0.0, "save_seconds": 0.0,
        }  # fmt: skip

    def _at_training_speed(self) -> Measurement:
        """The teacher's forward pass at the speed of training from scratch."""
        each = self.scratch["step_seconds"] / self.config.data.tokens_per_step
        forward = each * self.teacher_flops / self.step_flops
        return {"forward_seconds_per_token": forward, "record_seconds_per_token": forward}

    def _composed(self) -> Measurement:
        """A step of distillation: a step from scratch and the teacher's forward pass."""
        forward = float(self.teacher["forward_seconds_per_token"])
        step = self.scratch["step_seconds"] + self.config.data.tokens_per_step * forward
        return {**self.scratch, "step_seconds": step}
