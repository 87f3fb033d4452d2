"""A minute of measuring: what a plan's figures are made from.

A child process takes real steps of the real loop (measure.py). What is too large for a minute is
measured with one and with two layers, and fewer words and rows, and extrapolated in proportion to
what was left out; `Calibration.notes` says what was.
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
from gemmule.plan.memory import Shape, counted_bytes
from gemmule.runtime import memory

SECONDS = 60.0
STEP_LIMIT = 5.0  # seconds that a step may take to be measured whole
SMALL_VOCAB = 16384  # words of a model that is measured in part

Finding = dict[str, Any]


class CalibrationError(GemmuleError):
    """The measuring process failed, which is our fault; the message holds what it said."""


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        student: its shape.
        teacher: its shape; None for none.
        teacher_path: a real teacher's folder; None for a preset.
        data: the corpus's folder; None where there is none yet.
        train: settings of the run, for RunConfig, without data.path.
        flops: of the whole run, by "scratch" and "distill": long runs compile.
    """

    student: GemmaConfig
    teacher: GemmaConfig | None
    teacher_path: str | None
    data: str | None
    train: Mapping[str, Any]
    flops: Mapping[str, float]

    @property
    def rows(self) -> int:
        """Sequences at once."""
        data = self.train["data"]
        return int(data.get("micro_batch_size") or data["batch_size"])

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence."""
        return int(self.train["data"]["seq_len"])


@dataclass
class Calibration:
    """What was measured.

    Attributes:
        start: seconds until the first step, threads, dtype.
        teacher: its forward pass; None where that was not reached.
        scratch: steps of plain training; None where they were not reached.
        distill: steps of distillation; None where they were not reached or not tried.
        rows, student: the shape that `scratch` is of.
        gflops: of the machine's matrix products.
        seconds: what it took.
        notes: what was left out and extrapolated.
    """

    start: Finding
    teacher: Finding | None
    scratch: Finding | None
    distill: Finding | None
    rows: int
    student: GemmaConfig
    gflops: float
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def compiled(self) -> tuple[bool, bool]:
        """Whether plain training and distilling compile their blocks."""
        scratch, distill = self.start["compiled"]
        return scratch, distill

    @property
    def half(self) -> bool:
        """Whether activations are bfloat16."""
        return bool(self.start["dtype"] == "bfloat16")


def calibrate(
    asked: Asked, gflops: float, seconds: float = SECONDS, say: Callable[[str], None] | None = None
) -> Calibration:
    """Measures for at most `seconds`.

    Args:
        asked: what.
        gflops: of the machine's matrix products, to see what a minute is too short for.
        seconds: when to stop; what has not been measured by then is missing.
        say: called with the name of each finding as it arrives.

    Raises:
        CalibrationError: when the process failed, or did not even start in time.
    """
    began = time.monotonic()
    cuts = _cuts(asked, gflops, memory.usable() or float("inf"))
    found, failed = _run(asked, cuts, seconds, say)
    notes = list(cuts.notes)
    more = asked.train["data"]["batch_size"] / cuts.rows if cuts.rows != asked.rows else 1.0
    scratch = _scaled(found, "scratch", cuts.student, asked.student, more)
    teacher = _scaled(found, "teacher", cuts.teacher, asked.teacher, 1.0)
    if "start" not in found or failed:
        _fail(failed, seconds)
    if scratch is None:
        notes.append(
            f"training was not measured within {seconds:.0f} s: its work is put at half the rate "
            "of matrix products, compiling and saving are left out"
        )
    if asked.teacher is not None and teacher is None:
        notes.append(
            f"the teacher was not measured within {seconds:.0f} s: its passes are put at "
            "training's rate, encoding targets is left out"
        )
    distill = found.get("distill-0")
    if asked.teacher is not None and distill is None and scratch is not None:
        notes.append(
            "distilling was not measured itself: a step is put at one of plain training and the "
            "teacher's forward pass"
        )
    return Calibration(
        found["start"], teacher, scratch, distill, cuts.rows, cuts.student[-1],
        gflops, time.monotonic() - began, notes,
    )  # fmt: skip


@dataclass(frozen=True)
class _Cuts:
    """What is really measured: one shape when it is small enough, else two of few layers."""

    student: list[GemmaConfig]
    teacher: list[GemmaConfig]
    rows: int
    notes: list[str]

    @property
    def whole(self) -> bool:
        return len(self.student) == 1 and len(self.teacher) <= 1


def _cuts(asked: Asked, gflops: float, usable: float) -> _Cuts:
    rows, notes = asked.rows, []
    budget = STEP_LIMIT * gflops * 1e9 / 2  # half of the peak is what small matrices reach

    def work(config: GemmaConfig, passes: int, rows: int) -> float:
        return passes * config.forward_flops_per_token(asked.seq_len) * rows * asked.seq_len

    def fits(config: GemmaConfig, rows: int) -> bool:
        shape = Shape(config, rows, asked.seq_len, compiled=False)
        return counted_bytes(shape) < 0.5 * usable and config.parameters < 3e8

    student = [asked.student]
    if work(asked.student, 3, rows) > budget or not fits(asked.student, rows):
        two = asked.student.model_copy(update={"num_hidden_layers": 2})
        while rows > 1 and (work(two, 3, rows) > budget or not fits(two, rows)):
            rows //= 2
        student = _few_layers(asked.student, lambda c: fits(c, rows))
        notes.append(
            f"the student is measured with {student[0].num_hidden_layers} and "
            f"{student[1].num_hidden_layers} layers, {student[0].vocab_size:,} words and {rows} "
            "rows; its figures are extrapolated in proportion"
        )
    teacher = [] if asked.teacher is None else [asked.teacher]
    if asked.teacher and (
        work(asked.teacher, 1, rows) > budget or asked.teacher.parameters > min(5e8, usable / 16)
    ):
        teacher = _few_layers(asked.teacher, lambda c: c.parameters < min(5e8, usable / 16))
        notes.append(
            f"the teacher is measured with {teacher[0].num_hidden_layers} and "
            f"{teacher[1].num_hidden_layers} layers and random weights; its time is "
            "extrapolated in proportion"
        )
    return _Cuts(student, teacher, rows, notes)


def _few_layers(config: GemmaConfig, fits: Callable[[GemmaConfig], bool]) -> list[GemmaConfig]:
    """The same with one and with two layers and few words, narrower in the ffn if it must be."""
    small = config.model_copy(
        update={"vocab_size": min(config.vocab_size, SMALL_VOCAB), "num_hidden_layers": 2}
    )
    while not fits(small) and small.intermediate_size > 64:
        small = small.model_copy(update={"intermediate_size": small.intermediate_size // 2})
    return [small.model_copy(update={"num_hidden_layers": 1}), small]


def _scaled(
    found: Mapping[str, Finding],
    name: str,
    measured: list[GemmaConfig],
    full: GemmaConfig | None,
    rows: float,
) -> Finding | None:
    """A finding of the full shape: as measured, or from one and two layers in proportion."""
    parts = [found.get(f"{name}-{i}") for i in range(len(measured))]
    if full is None or not parts or parts[0] is None:
        return None
    if len(parts) == 1:
        return dict(parts[0])
    one, two = parts[0], parts[1] or parts[0]
    last = dict(two)
    small = measured[0]
    wider = _layer_parameters(full) / _layer_parameters(small)
    words = full.vocab_size / small.vocab_size
    for key in ("step_seconds", "evaluation_seconds_per_token", "forward_seconds_per_token",
                "record_seconds_per_token"):  # fmt: skip
        if key not in last:
            continue
        # Without the second measurement all the time is put down to the layer.
        layer = max(0.0, two[key] - one[key]) if two is not one else one[key]
        rest = max(0.0, one[key] - layer)
        per_step = rows if key == "step_seconds" else 1.0
        last[key] = per_step * (rest * words + layer * wider * full.num_hidden_layers)
    return last


def _layer_parameters(config: GemmaConfig) -> float:
    return (config.non_embedding_parameters - config.hidden_size) / config.num_hidden_layers


def _run(
    asked: Asked, cuts: _Cuts, seconds: float, say: Callable[[str], None] | None
) -> tuple[dict[str, Finding], str]:
    """Findings by name, and the end of what a process that failed said."""
    whole = cuts.whole
    train = dict(asked.train)
    if cuts.rows != asked.rows:
        train["data"] = {
            **train["data"], "batch_size": cuts.rows, "micro_batch_size": None,
        }  # fmt: skip
    spec = {
        "data": asked.data if whole else None,
        "train": train,
        "started": time.time(),
        "student": [c.model_dump() for c in cuts.student],
        "teacher": [c.model_dump() for c in cuts.teacher],
        "teacher_path": asked.teacher_path if len(cuts.teacher) == 1 else None,
        "flops": dict(asked.flops),
        "distill": whole,
    }
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        # Graphs are compiled anew, as a first run of this shape will have to.
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "gemmule.plan.calibration_worker", json.dumps(spec)],
                stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
                start_new_session=True,
            )  # fmt: skip
            timer = threading.Timer(seconds, _kill, (process,))
            timer.start()
            found: dict[str, Finding] = {}
            try:
                assert process.stdout is not None
                with process.stdout as lines:
                    for line in lines:
                        finding = json.loads(line)
                        name = finding.pop("finding")
                        found[name] = finding
                        if say is not None:
                            say(name.partition("-")[0])
                process.wait()
            finally:
                timer.cancel()
                _kill(process)
                process.wait()
            errors.seek(0)
            said = errors.read().strip() if process.returncode > 0 else ""
    return found, said


def _kill(process: "subprocess.Popen[str]") -> None:
    """Ends it and the compilers that it started; its group is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _fail(said: str, seconds: float) -> NoReturn:
    end = "\n".join(said.splitlines()[-12:])
    raise CalibrationError(
        f"the calibration failed:\n{end}"
        if end
        else f"nothing could be measured within {seconds:.0f} s: give it more time with "
        "--calibration-seconds"
    )
