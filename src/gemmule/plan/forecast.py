"""`gemmule plan`: puts measurement, counting and the scaling law together."""

import functools
from collections.abc import Callable
from typing import Any

from gemmule.data.dataset import Dataset
from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.plan import processes
from gemmule.plan.budget import Budget, spend
from gemmule.plan.calibrate import Calibration, CalibrationRequest, calibrate
from gemmule.plan.calibration_worker import storage_specs
from gemmule.plan.law import Law
from gemmule.plan.measured_runs import read_runs
from gemmule.plan.memory import (
    HEAP_GROWTH,
    MARGIN,
    StepShape,
    counted_bytes,
    largest_rows,
    predict_peak,
)
from gemmule.plan.models import Planned, find_both
from gemmule.plan.routes import STORED_OVER_SCRATCH, Clock, Corpus, Route
from gemmule.plan.scarce_text import scarce_text
from gemmule.plan.settings import PlanRequest
from gemmule.plan.storage import estimated_bytes
from gemmule.runs.carbon import check_country
from gemmule.runtime import device, host, memory
from gemmule.teachers.target_spec import TargetSpec
from gemmule.train.config import RunConfig


def make_plan(request: PlanRequest, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measures the machine for up to a minute and predicts the run.

    Args:
        request: settings of the plan.
        say: called with the name of each measurement.

    Returns:
        JSON-able: teacher, student, run, machine, calibration, memory, disk, routes, scaling,
        budget, scarce_text, processes (None for one) and notes; see docs/plan.md.

    Raises:
        UserError: when a model, the corpus, a run or a setting cannot be used.
        CalibrationError: when nothing could be measured.
    """
    dataset = Dataset.open(request.data) if request.data is not None else None
    teacher, student = find_both(request.teacher, request.student, dataset, request.vocab_size)
    config = request.train_config(student.config)
    _check_context(config, teacher, student)
    config.shared_by(request.nproc)
    runs, notes = read_runs(request.runs, dataset.fingerprint if dataset else None)
    check_country(config.runtime.country)
    corpus = _corpus(dataset)
    tokens = config.steps * config.data.tokens_per_step
    student_flops, teacher_flops = (
        m.config.forward_flops_per_token(config.data.seq_len) for m in (student, teacher)
    )
    flops = {"scratch": 3 * student_flops * tokens}
    flops["distill"] = flops["scratch"] + teacher_flops * tokens
    wanted = CalibrationRequest(
        student.config, teacher.config, teacher.path, str(request.data) if dataset else None,
        _settings(config), flops,
    )  # fmt: skip
    calibration = calibrate(wanted, device.matmul_gflops(), request.calibration_seconds, say)
    clock = Clock(calibration, config, corpus, student_flops, teacher_flops)
    routes = _routes(clock, tokens, request.students)
    predictions = Law(request, teacher, student, calibration.teacher, dataset, runs)
    law = predictions.predict(routes)
    notes += _warnings(corpus, tokens)
    budget = Budget(request.max_wh, request.max_gco2e)
    return {
        "teacher": _about(teacher),
        "student": _about(student),
        "run": {
            "tokens": tokens, "steps": config.steps, "batch_size": config.data.batch_size,
            "micro_batch_size": config.data.micro_batch, "seq_len": config.data.seq_len,
            "compiled": dict(zip(("scratch", "distill"), calibration.compiled, strict=True)),
            "corpus_tokens": corpus.train or None, "students": request.students,
        },
        "machine": host.machine(),
        "calibration": {
            "seconds": round(calibration.seconds, 1), "start": calibration.start,
            "teacher": calibration.teacher, "scratch": calibration.scratch,
            "distill": calibration.distill,
        },
        "memory": _memory(calibration, config, teacher, student),
        "disk": _disk(calibration, teacher, student, corpus, tokens, law["teacher_loss"]["median"]),
        "routes": {route.name: route.to_json() for route in routes},
        "energy_how": (calibration.scratch or {}).get("how", {}),
        "scaling": law,
        "budget": spend(budget, clock, predictions, student, _fits(calibration, config))
        if budget else None,
        "scarce_text": scarce_text(
            corpus.train, dataset.fingerprint if dataset else None, teacher.config, student.config,
            request.runs,
        ),
        "processes": None if request.nproc == 1 else processes.predict(
            student.config, config, clock.scratch["step_seconds"], calibration.start["threads"],
            request.nproc,
        ).to_json(),
        "notes": [*calibration.notes, *notes],
    }  # fmt: skip


def _fits(calibration: Calibration, config: RunConfig) -> Callable[[GemmaConfig], bool]:
    """Whether one sequence of a model of some shape fits in this machine's memory."""
    limit = memory.usable()

    def fits(shape: GemmaConfig) -> bool:
        step = StepShape(
            shape, 1, config.data.seq_len, calibration.compiled[False], calibration.half
        )
        peak = HEAP_GROWTH * calibration.start["peak_bytes"] + counted_bytes(step)
        return limit is None or peak <= (1 - MARGIN) * limit

    return fits


def _about(model: Planned) -> dict[str, Any]:
    return {
        "name": model.name,
        "parameters": model.config.parameters,
        "non_embedding_parameters": model.config.non_embedding_parameters,
        "vocab_size": model.config.vocab_size,
        "has_weights": model.path is not None,
    }


def _settings(config: RunConfig) -> dict[str, Any]:
    """Settings for the child process, which measures a few steps whatever the run's length."""
    exclude: Any = {"data": {"path"}, "model": True, "objective": True}
    return {**config.model_dump(mode="json", exclude=exclude), "steps": 1}


def _check_context(config: RunConfig, *models: Planned) -> None:
    for model in models:
        longest = model.config.max_position_embeddings
        if config.data.seq_len > longest:
            raise ConfigError(
                f"seq_len = {config.data.seq_len} is longer than the context of {model.name}, "
                f"{longest} tokens: shorten it"
            )


def _corpus(dataset: Dataset | None) -> Corpus:
    if dataset is None:
        return Corpus(0, 0, 0)
    sizes = {name: s["tokens"] for name, s in dataset.manifest["splits"].items()}
    return Corpus(sizes["train"], sizes["validation"], sizes["heldout"])


def _warnings(corpus: Corpus, tokens: int) -> list[str]:
    notes = []
    if not corpus.train:
        notes.append("there is no corpus yet: evaluation takes extra time")
    elif tokens > 4 * corpus.train:
        notes.append(
            f"{tokens:,} tokens are {tokens / corpus.train:.0f} passes over the corpus: the "
            "scaling law ignores repetition and predicts too low a loss"
        )
    return notes


def _routes(clock: Clock, tokens: float, students: int) -> list[Route]:
    """Equal tokens, then training from scratch with the compute of each way to distill."""
    recorded = min(tokens, clock.corpus.train or tokens)
    scratch = clock.train("scratch", tokens)
    online = clock.train("online", tokens, online=True)
    record = clock.record("record", recorded)
    stored = clock.train("stored", tokens, factor=STORED_OVER_SCRATCH)
    share = record.flops / students
    return [
        scratch, online, record, stored,
        clock.train("scratch_equal_online", online.flops / clock.step_flops),
        clock.train("scratch_equal_stored", (stored.flops + share) / clock.step_flops),
    ]  # fmt: skip


def _memory(
    calibration: Calibration, config: RunConfig, teacher: Planned, student: Planned
) -> dict[str, Any]:
    """Peak memory of the processes, and the largest micro-batch that fits."""
    limit = memory.usable()

    def shape(rows: int, online: bool) -> StepShape:
        return StepShape(
            student.config, rows, config.data.seq_len, calibration.compiled[online],
            calibration.half, teacher.config if online else None,
        )  # fmt: skip

    def peak(rows: int, online: bool) -> float:
        measured = calibration.distill if online else calibration.scratch
        if measured is not None and online:
            at = shape(calibration.rows, online)
            return predict_peak(HEAP_GROWTH * measured["peak_bytes"], at, shape(rows, online))
        at = StepShape(
            calibration.student,
            calibration.rows,
            config.data.seq_len,
            calibration.compiled[False],
            calibration.half,
        )
        if calibration.scratch is not None:
            whole = HEAP_GROWTH * calibration.scratch["peak_bytes"]
            return predict_peak(whole, at, shape(rows, online))
        return calibration.start["peak_bytes"] + counted_bytes(shape(rows, online))

    def recording(rows: int) -> float:
        """The teacher's weights, and the activations of one layer's forward pass."""
        width = 4 * (teacher.config.hidden_size + teacher.config.intermediate_size)
        passing = 4 * width * rows * config.data.seq_len
        return float(calibration.start["peak_bytes"] + 4 * teacher.config.parameters + passing)

    def stored(rows: int) -> float:
        """As from scratch, with the targets of a batch: ids of 8 bytes, weights of 4."""
        return peak(rows, False) + 12 * TargetSpec().draws * rows * config.data.seq_len

    ways: dict[str, Callable[[int], float]] = {
        "scratch": functools.partial(peak, online=False),
        "online": functools.partial(peak, online=True),
        "record": recording,
        "stored": stored,
    }
    return {
        "limit_bytes": limit,
        **{
            name: {
                "peak_bytes": round(way(config.data.micro_batch)),
                "largest_micro_batch": None if limit is None else largest_rows(way, limit),
            }
            for name, way in ways.items()
        },
    }


def _disk(
    calibration: Calibration, teacher: Planned, student: Planned, corpus: Corpus, tokens: int,
    entropy: float,
) -> dict[str, Any]:  # fmt: skip
    """Bytes of a logit store for each kind of target, and of whole fp16 logits."""
    vocab_size = student.config.vocab_size
    measured = (calibration.teacher or {}).get("bytes_per_token")
    each = measured or estimated_bytes(storage_specs(vocab_size), vocab_size, entropy)
    how = (
        f"measured on {(calibration.teacher or {})['tokens']:,} tokens of {teacher.name}"
        if measured
        else f"estimated: every token's distribution is a power law of rank (Zipf), with an "
        f"entropy of {entropy:.2f} nats, the teacher's expected loss"
    )
    recorded = min(tokens, corpus.train or tokens)
    each = {**each, "whole fp16 logits": 2.0 * vocab_size}
    return {
        "tokens": recorded,
        "how": how,
        "targets": {
            name: {"bytes_per_token": round(size, 2), "bytes": round(size * recorded)}
            for name, size in each.items()
        },
    }
