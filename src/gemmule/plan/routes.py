"""Time, energy and compute of each way to train the student, from what was measured."""

from dataclasses import dataclass
from typing import Any

from gemmule.plan.calibrate import Calibration, Finding
from gemmule.train.config import RunConfig

STORED_OVER_SCRATCH = 1.02  # a step that learns from a store: the student's, and reading targets


@dataclass(frozen=True)
class Corpus:
    """How many tokens each part of the corpus has; 0 where it is not there yet."""

    train: int
    validation: int
    heldout: int


@dataclass(frozen=True)
class Route:
    """One way, and what it takes.

    Attributes:
        name: for tables and JSON.
        tokens: the student is trained on; of a recording, those recorded.
        flops: floating-point operations, forward and backward.
        seconds: from the command to its end.
        steady_seconds: of these, optimiser steps or the teacher's passes.
        energy_wh, gco2e: None where the meter knows nothing.
    """

    name: str
    tokens: float
    flops: float
    seconds: float
    steady_seconds: float
    energy_wh: float | None
    gco2e: float | None

    def to_json(self) -> dict[str, Any]:
        """Its figures, rounded."""
        wh, grams = (None if x is None else round(x, 4) for x in (self.energy_wh, self.gco2e))
        return {
            "tokens": round(self.tokens), "flops": self.flops,
            "seconds": round(self.seconds, 2), "steady_seconds": round(self.steady_seconds, 2),
            "hours": round(self.seconds / 3600, 4), "energy_wh": wh, "gco2e": grams,
        }  # fmt: skip


class Clock:
    """Turns a run's settings into seconds.

    Args:
        found: the calibration.
        config: the run.
        corpus: its sizes.
        student_flops, teacher_flops: of a forward pass of one token.
    """

    def __init__(
        self, found: Calibration, config: RunConfig, corpus: Corpus,
        student_flops: float, teacher_flops: float,
    ) -> None:  # fmt: skip
        self.found, self.config, self.corpus = found, config, corpus
        self.student_flops, self.teacher_flops = student_flops, teacher_flops
        self.scratch = found.scratch or self._guessed()
        self.teacher = found.teacher or self._at_training_s_rate()
        self.distill = found.distill or self._composed()

    @property
    def step_flops(self) -> float:
        """Of plain training, a token."""
        return 3 * self.student_flops

    def train(self, name: str, tokens: float, *, online: bool = False, factor: float = 1) -> Route:
        """A training run: start, compiling, steps, evaluations, saving, the final figures."""
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
        return float(self.found.start["seconds"] + load)

    def _route(
        self, name: str, tokens: float, flops: float, seconds: float, steady: float, step: Finding
    ) -> Route:
        watts, grid = step.get("watts"), step.get("grid_gco2e_per_kwh")
        wh = None if watts is None else float(watts) * seconds / 3600
        grams = None if wh is None or grid is None else wh * float(grid) / 1000
        return Route(name, tokens, flops, seconds, steady, wh, grams)

    def _guessed(self) -> Finding:
        """A step of plain training at half the rate of matrix products."""
        forward = self.student_flops / (0.5e9 * self.found.gflops)
        return {
            "step_seconds": 3 * forward * self.config.data.tokens_per_step, "compile_seconds": 0.0,
            "evaluation_seconds_per_token": forward, "overhead_seconds": 0.0, "save_seconds": 0.0,
        }  # fmt: skip

    def _at_training_s_rate(self) -> Finding:
        """The teacher's forward pass, as fast as plain training is by operations."""
        each = self.scratch["step_seconds"] / self.config.data.tokens_per_step
        forward = each * self.teacher_flops / self.step_flops
        return {"forward_seconds_per_token": forward, "record_seconds_per_token": forward}

    def _composed(self) -> Finding:
        """A step of distillation from plain training's and the teacher's forward pass."""
        forward = float(self.teacher["forward_seconds_per_token"])
        step = self.scratch["step_seconds"] + self.config.data.tokens_per_step * forward
        return {**self.scratch, "step_seconds": step}
