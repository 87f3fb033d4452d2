"""Measures loading, prefill, decoding and a long context, and the machine's limits."""

import gc
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gemmule.checkpoints.load import load_to_run
from gemmule.console import Progress
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.infer.runners.protocol import Runner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.gemma import Gemma
from gemmule.quant import native
from gemmule.runtime import host, memory
from gemmule.speed import machine_peak, roofline
from gemmule.speed.busy import busy_processes
from gemmule.speed.drive import Driver
from gemmule.speed.settings import SpeedRequest

STEPS = 16  # of decoding in a row
_ROUNDS = 3
_LONG_SECONDS = 20.0  # maximum duration of a long prompt, about
_MIN_LONG = 4  # times the short context, or there is nothing to compare


@dataclass(frozen=True)
class _Times:
    """Seconds that a model took.

    Attributes:
        load: loading the checkpoint and making the runner.
        prompt: the prompt, until the first token of its answer.
        steps: decoding steps, by batch size.
        busy: prompts and steps again, next to busy processes; None if there were none.
        long: length of a long context, and steps there; None if there is no time for one.
    """

    load: float
    prompt: float
    steps: Mapping[int, list[float]]
    busy: "_Rounds | None"
    long: tuple[int, list[float]] | None


class _Rounds:
    """Times of prompts and of decoding steps, round after round.

    Args:
        request: lengths and batch sizes.
        note: how the times are taken, for the progress bar.
    """

    def __init__(self, request: SpeedRequest, note: str = "") -> None:
        self.request, self.note = request, note
        self.prompts: list[float] = []
        self.steps: dict[int, list[float]] = {batch: [] for batch in request.batch}

    def take(self, driver: Driver, stages: "_Stages") -> None:
        """One more round."""
        request = self.request
        stages.begin(f"a prompt of {request.prompt} tokens{self.note}")
        self.prompts.append(driver.prefill(request.prompt))
        for batch in request.batch:
            stages.begin(f"decoding, batch size {batch}{self.note}")
            self.steps[batch] += driver.decode(batch, request.context, STEPS)


class _Stages:
    """Reports the stages of a measurement, which are all counted the same."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def begin(self, what: str) -> None:
        self.progress(self.done, self.total, what)
        self.done += 1

    def end(self) -> None:
        self.progress(self.total, self.total, "")


def measure(request: SpeedRequest, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Measures a model on this machine.

    Every time is a median over rounds, each of which takes all times one after the other. The
    machine's limits are the best of several readings.

    Raises:
        ConfigError: for settings that do not fit the model.
        CheckpointError: when it cannot be read.
    """
    threads = request.threads or host.usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    turns = _ROUNDS * (2 if request.beside else 1)
    stages = _Stages(3 + turns * (1 + len(request.batch)), progress)
    try:
        return _measured(request, threads, stages)
    finally:
        torch.set_num_threads(before)


def _measured(request: SpeedRequest, threads: int, stages: _Stages) -> dict[str, Any]:
    stages.begin("loading")
    began = time.perf_counter()
    model, _ = load_to_run(request.model, quantize=request.quantize)
    request.check_fits(model.config.max_position_embeddings, STEPS + 1)
    runner = runner_of(model, threads)
    driver = Driver(runner)
    times = _times(request, driver, model, time.perf_counter() - began, stages)
    peak = memory.peak()
    load = roofline.of_model(model, runner)
    name, cache = type(runner).__name__, runner.cache_format
    del driver, runner, model  # measuring the limits needs the memory
    gc.collect()
    stages.begin("the machine's limits")
    limits, machine = _limits(threads, load.packed)
    stages.end()
    return {
        "model": {
            "path": request.model,
            "parameters": load.config.parameters,
            "format": load.format,
            "head": load.head,
            "weight_bytes": load.weight_bytes,
            "bits_per_weight": load.bits_per_weight,
            "cache": cache,
            "cache_bytes_per_token": load.position_bytes * load.config.num_hidden_layers,
        },
        "machine": {**host.machine(), "threads": threads, "runner": name, **machine},
        "load_seconds": times.load,
        "first_token_seconds": times.prompt,
        "prefill": _prefill(load, limits, request.prompt, times.prompt),
        "decode": [
            _decode(load, limits, batch, request.context, seconds)
            for batch, seconds in times.steps.items()
        ],
        "long_context": _long(load, limits, times),
        "busy": _busy(request.beside, times),
        "peak_bytes": peak,
    }


def _times(
    request: SpeedRequest, driver: Driver, model: Gemma, load_seconds: float, stages: _Stages
) -> _Times:
    driver.prefill(min(32, request.prompt))  # allocates memory and starts threads
    alone, contended = _Rounds(request), _Rounds(request, ", cores busy")
    for _ in range(_ROUNDS):
        alone.take(driver, stages)
        if request.beside:
            with busy_processes(request.beside):
                contended.take(driver, stages)
    prompt = statistics.median(alone.prompts)
    stages.begin("a long context")
    long = _long_context(request, driver, model, prompt / request.prompt)
    return _Times(load_seconds, prompt, alone.steps, contended if request.beside else None, long)


def runner_of(model: Gemma, threads: int, cache: str | None = None) -> Runner:
    """The native runner with that number of threads if it can run `model`, else the torch one."""
    if NativeRunner.supports(model):
        return NativeRunner(model, cache=cache, threads=threads)
    return TorchRunner(model)


def _long_context(
    request: SpeedRequest, driver: Driver, model: Gemma, seconds_per_token: float
) -> tuple[int, list[float]] | None:
    """The longest context that can be filled in reasonable time, and seconds of steps there."""
    context = model.config.max_position_embeddings - STEPS - 1
    affordable = int(_LONG_SECONDS / seconds_per_token)
    if context > affordable:
        context = 1 << max(0, affordable.bit_length() - 1)
    while context and not driver.engine.fits(context + STEPS + 1):
        context //= 2
    if context < _MIN_LONG * request.context:
        return None
    return context, driver.decode(1, context, STEPS)


def _limits(threads: int, packed: bool) -> tuple[roofline.MachineLimits, dict[str, Any]]:
    speeds = machine_peak.read_speeds(sorted({1, threads}))
    integers, floats = machine_peak.int8_operations(threads), machine_peak.float32_operations()
    limits = roofline.MachineLimits(speeds[threads], integers if packed and integers else floats)
    return limits, {
        "instruction_set": native.instruction_set() if native.available() else None,
        "last_level_cache_bytes": machine_peak.last_level_cache(),
        "read_bytes_per_second": {str(count): speed for count, speed in speeds.items()},
        "int8_operations_per_second": integers,
        "float32_operations_per_second": floats,
    }


def _prefill(
    load: roofline.ModelLoad, limits: roofline.MachineLimits, tokens: int, seconds: float
) -> dict[str, Any]:
    bound = load.prompt(limits, tokens)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "floor_tokens_per_second": tokens / bound.seconds,
        "share_of_floor": bound.seconds / seconds,
        "bound": bound.limit,
    }


def _decode(
    load: roofline.ModelLoad,
    limits: roofline.MachineLimits,
    batch: int,
    context: int,
    steps: list[float],
) -> dict[str, Any]:
    seconds = statistics.median(steps)
    bound = load.step(limits, batch, context + len(steps) / 2)
    return {
        "batch": batch,
        "context": context,
        "tokens_per_second": batch / seconds,
        "step_seconds": seconds,
        "bytes_per_token": bound.bytes_read / batch,
        "floor_tokens_per_second": batch / bound.seconds,
        "share_of_floor": bound.seconds / seconds,
        "bound": bound.limit,
    }


def _busy(processes: int, times: _Times) -> dict[str, Any] | None:
    """Speeds next to busy processes, as shares of those alone."""
    if times.busy is None:
        return None
    prompts, steps = times.busy.prompts, times.busy.steps
    return {
        "processes": processes,
        "prefill": times.prompt / statistics.median(prompts),
        "decode": [
            {"batch": batch, "share": _total(times.steps[batch]) / _total(seconds)}
            for batch, seconds in steps.items()
        ],
    }


def _total(steps: list[float]) -> float:
    """Seconds of the median of the rounds: a step that had to wait for a core counts as well."""
    return statistics.median(sum(steps[n : n + STEPS]) for n in range(0, len(steps), STEPS))


def _long(
    load: roofline.ModelLoad, limits: roofline.MachineLimits, times: _Times
) -> dict[str, Any] | None:
    if times.long is None:
        return None
    context, steps = times.long
    return {
        **_decode(load, limits, 1, context, steps),
        "slowdown": statistics.median(steps) / statistics.median(times.steps[1]),
        "whole": context + STEPS + 1 >= load.config.max_position_embeddings,
    }
