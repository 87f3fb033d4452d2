"""Calibration: a minute of measurements that a plan is computed from.

A child process takes steps of the real training loop (calibration_worker.py). A model that is too
large for a minute is measured with one and with two layers, a smaller vocabulary and a smaller
batch, and extrapolated in proportion; `Calibration.notes` says what was extrapolated.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gemmule.errors import GemmuleError
from gemmule.model.config import GemmaConfig
from gemmule.plan.memory import StepShape, counted_bytes
from gemmule.runtime import memory

SECONDS = 60.0
STEP_LIMIT = 5.0  # maximum seconds of a step that is measured whole
SMALL_VOCAB = 16384  # vocabulary size of a model that is measured in part

Measurement = dict[str, Any]  # numbers by name


class CalibrationError(GemmuleError):
    """The calibration process failed, which is our fault; the message holds its output."""


@dataclass(frozen=True)
class CalibrationRequest:
    """The models and the run to measure.

    Attributes:
        student: shape of the student.
        teacher: shape of the teacher; None for none.
        teacher_path: folder of an existing teacher; None for a preset.
        data: folder of the corpus; None if there is none yet.
        train: settings of the run, for RunConfig, without data.path.
        flops: FLOPs of the whole run, by "scratch" and "distill": long runs compile.
    """

    student: GemmaConfig
    teacher: GemmaConfig | None
    teacher_path: str | None
    data: str | None
    train: Mapping[str, Any]
    flops: Mapping[str, float]

    @property
    def rows(self) -> int:
        """Sequences per micro-batch."""
        data = self.train["data"]
        return int(data.get("micro_batch_size") or data["batch_size"])

    @property
    def seq_len(self) -> int:
        """Tokens per sequence."""
        return int(self.train["data"]["seq_len"])


@dataclass
class Calibration:
    """Result of a calibration.

    Attributes:
        start: seconds until the first step, threads, dtype.
        teacher: forward pass of the teacher; None if there was no time for it.
        scratch: steps of training from scratch; None if there was no time for them.
        distill: steps of distillation; None if there was no time for them, or they were not tried.
        rows, student: batch size and shape that `scratch` was measured with.
        gflops: speed of matrix products on this machine.
        seconds: duration of the calibration.
        notes: what was extrapolated or left out.
    """

    start: Measurement
    teacher: Measurement | None
    scratch: Measurement | None
    distill: Measurement | None
    rows: int
    student: GemmaConfig
    gflops: float
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def compiled(self) -> tuple[bool, bool]:
        """Whether training from scratch and distillation compile their blocks."""
        scratch, distill = self.start["compiled"]
        return scratch, distill

    @property
    def half(self) -> bool:
        """Whether activations are bfloat16."""
        return bool(self.start["dtype"] == "bfloat16")


def calibrate(
    request: CalibrationRequest,
    gflops: float,
    seconds: float = SECONDS,
    say: Callable[[str], None] | None = None,
) -> Calibration:
    """Measures for at most `seconds`.

    Args:
        request: what to measure.
        gflops: speed of matrix products, to see what a minute is too short for.
        seconds: maximum duration; what has not been measured by then is missing.
        say: called with the name of each measurement as it arrives.

    Raises:
        CalibrationError: when the process failed, or did not start in time.
    """
    began = time.monotonic()
    cuts = _cuts(request, gflops, memory.usable() or float("inf"))
    measured, failed = _run(request, cuts, seconds, say)
    notes = list(cuts.notes)
    more = request.train["data"]["batch_size"] / cuts.rows if cuts.rows != request.rows else 1.0
    scratch = _scaled(measured, "scratch", cuts.student, request.student, more)
    teacher = _scaled(measured, "teacher", cuts.teacher, request.teacher, 1.0)
    if "start" not in measured or failed:
        _fail(failed, seconds)
    if scratch is None:
        notes.append(
            f"training was not measured within {seconds:.0f} s: assumed at half the speed "
            "of matrix products, without compilation and saving"
        )
    if request.teacher is not None and teacher is None:
        notes.append(
            f"the teacher was not measured within {seconds:.0f} s: assumed at the speed of "
            "training, without encoding targets"
        )
    distill = measured.get("distill-0")
    if request.teacher is not None and distill is None and scratch is not None:
        notes.append(
            "distillation was not measured: a step is assumed to take as long as a step from "
            "scratch and the teacher's forward pass"
        )
    return Calibration(
        measured["start"], teacher, scratch, distill, cuts.rows, cuts.student[-1],
        gflops, time.monotonic() - began, notes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Cuts:
    """What is measured: the whole shape if it is small enough, otherwise one and two layers."""

    student: list[GemmaConfig]
    teacher: list[GemmaConfig]
    rows: int
    notes: list[str]

    @property
    def whole(self) -> bool:
        return len(self.student) == 1 and len(self.teacher) <= 1


def _cuts(request: CalibrationRequest, gflops: float, usable: float) -> _Cuts:
    rows, notes = request.rows, []
    budget = STEP_LIMIT * gflops * 1e9 / 2  # half of the peak is what small matrices reach

    def work(config: GemmaConfig, passes: int, rows: int) -> float:
        return passes * config.forward_flops_per_token(request.seq_len) * rows * request.seq_len

    def fits(config: GemmaConfig, rows: int) -> bool:
        shape = StepShape(config, rows, request.seq_len, compiled=False)
        return counted_bytes(shape) < 0.5 * usable and config.parameters < 3e8

    student = [request.student]
    if work(request.student, 3, rows) > budget or not fits(request.student, rows):
        two = request.student.model_copy(update={"num_hidden_layers": 2})
        while rows > 1 and (work(two, 3, rows) > budget or not fits(two, rows)):
            rows //= 2
        student = _few_layers(request.student, lambda c: fits(c, rows))
        notes.append(
            f"the student is measured with {student[0].num_hidden_layers} and "
            f"{student[1].num_hidden_layers} layers, a vocabulary of "
            f"{student[0].vocab_size:,} and {rows} rows; its times are extrapolated in proportion"
        )
    teacher = [] if request.teacher is None else [request.teacher]
    if request.teacher and (
        work(request.teacher, 1, rows) > budget
        or request.teacher.parameters > min(5e8, usable / 16)
    ):
        teacher = _few_layers(request.teacher, lambda c: c.parameters < min(5e8, usable / 16))
        notes.append(
            f"the teacher is measured with {teacher[0].num_hidden_layers} and "
            f"{teacher[1].num_hidden_layers} layers and random weights; its time is "
            "extrapolated in proportion"
        )
    return _Cuts(student, teacher, rows, notes)


def _few_layers(config: GemmaConfig, fits: Callable[[GemmaConfig], bool]) -> list[GemmaConfig]:
    """The shape with one and two layers, a small vocabulary, and a narrower ffn if needed."""
    small = config.model_copy(
        update={"vocab_size": min(config.vocab_size, SMALL_VOCAB), "num_hidden_layers": 2}
    )
    while not fits(small) and small.intermediate_size > 64:
        small = small.model_copy(update={"intermediate_size": small.intermediate_size // 2})
    return [small.model_copy(update={"num_hidden_layers": 1}), small]


def _scaled(
    measured: Mapping[str, Measurement],
    name: str,
    shapes: list[GemmaConfig],
    full: GemmaConfig | None,
    rows: float,
) -> Measurement | None:
    """A measurement of the full shape: as measured, or extrapolated from one and two layers."""
    parts = [measured.get(f"{name}-{i}") for i in range(len(shapes))]
    if full is None or not parts or parts[0] is None:
        return None
    if len(parts) == 1:
        return dict(parts[0])
    one, two = parts[0], parts[1] or parts[0]
    last = dict(two)
    small = shapes[0]
    wider = _layer_parameters(full) / _layer_parameters(small)
    vocabulary = full.vocab_size / small.vocab_size
    for key in ("step_seconds", "evaluation_seconds_per_token", "forward_seconds_per_token",
                "record_seconds_per_token"):  # fmt: skip
        if key not in last:
            continue
        # Without the second measurement all the time is attributed to the layer.
        layer = max(0.0, two[key] - one[key]) if two is not one else one[key]
        rest = max(0.0, one[key] - layer)
        per_step = rows if key == "step_seconds" else 1.0
        last[key] = per_step * (rest * vocabulary + layer * wider * full.num_hidden_layers)
    return last


def _layer_parameters(config: GemmaConfig) -> float:
    return (config.non_embedding_parameters - config.hidden_size) / config.num_hidden_layers


def _run(
    request: CalibrationRequest, cuts: _Cuts, seconds: float, say: Callable[[str], None] | None
) -> tuple[dict[str, Measurement], str]:
    """Measurements by name, and the output of a process that failed."""
    whole = cuts.whole
    train = dict(request.train)
    if cuts.rows != request.rows:
        train["data"] = {
            **train["data"], "batch_size": cuts.rows, "micro_batch_size": None,
        }  # fmt: skip
    spec = {
        "data": request.data if whole else None,
        "train": train,
        "started": time.time(),
        "student": [c.model_dump() for c in cuts.student],
        "teacher": [c.model_dump() for c in cuts.teacher],
        "teacher_path": request.teacher_path if len(cuts.teacher) == 1 else None,
        "flops": dict(request.flops),
        "distill": whole,
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        # Graphs are compiled again, as the first run of this shape will do.
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "gemmule.plan.calibration_worker", json.dumps(spec)],
                stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
            timer = threading.Timer(seconds, _kill, (process,))
            timer.start()
            measured: dict[str, Measurement] = {}
            try:
                assert process.stdout is not None
                with process.stdout as lines:
                    for line in lines:
                        measurement = json.loads(line)
                        name = measurement.pop("finding")
                        measured[name] = measurement
                        if say is not None:
                            say(name.partition("-")[0])
                process.wait()
            finally:
                timer.cancel()
                _kill(process)
                process.wait()
            errors.seek(0)
            output = errors.read().strip() if process.returncode > 0 else ""
    return measured, output


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kills the process and the compilers that it started; it has a process group of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _fail(output: str, seconds: float) -> NoReturn:
    end = "\n".join(output.splitlines()[-12:])
    raise CalibrationError(
        f"the calibration failed:\n{end}"
        if end
        else f"nothing could be measured within {seconds:.0f} s: give it more time with "
        "--calibration-seconds"
    )
