"""The measurement: load, prompts, decoding, a long context; then the machine's limits."""

import gc
import statistics
import time
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
from gemmule.speed.drive import Driver
from gemmule.speed.settings import SpeedRequest

STEPS = 16  # of decoding in a row
_TURNS = 3
_LONG_SECONDS = 20.0  # a long prompt may take about so long
_LEAST_LONG = 4  # times the short context, or there is nothing to compare


def measure(request: SpeedRequest, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Measures a model on this machine.

    Every figure of the model is a median over turns in which all figures are taken one after the
    other; the limits are the best of several readings.

    Raises:
        ConfigError: for settings that do not fit the model.
        CheckpointError: when it cannot be read.
    """
    threads = request.threads or host.usable_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measured(request, threads, progress)
    finally:
        torch.set_num_threads(before)


def _measured(request: SpeedRequest, threads: int, progress: Progress) -> dict[str, Any]:
    figures = 3 + _TURNS * (1 + len(request.batch))
    done = 0

    def next_is(what: str) -> None:
        nonlocal done
        progress(done, figures, what)
        done += 1

    next_is("loading")
    began = time.perf_counter()
    model, _ = load_to_run(request.model, quantize=request.quantize)
    request.check_fits(model.config.max_position_embeddings, STEPS + 1)
    runner = runner_of(model, threads)
    driver = Driver(runner)
    load_seconds = time.perf_counter() - began
    driver.prefill(min(32, request.prompt))  # memory is asked for, threads are started
    prompts: list[float] = []
    decoded: dict[int, list[float]] = {batch: [] for batch in request.batch}
    for _ in range(_TURNS):
        next_is(f"a prompt of {request.prompt} tokens")
        prompts.append(driver.prefill(request.prompt))
        for batch in request.batch:
            next_is(f"decoding, {batch} at once")
            decoded[batch] += driver.decode(batch, request.context, STEPS)
    prompt_seconds = statistics.median(prompts)
    next_is("a long context")
    long = _long_context(request, driver, model, prompt_seconds / request.prompt)
    peak = memory.peak()
    load = roofline.of_model(model, runner)
    name = type(runner).__name__
    cache = "float16" if isinstance(runner, NativeRunner) else str(_dtype(model))
    if load.format == "f32":
        cache = "float32"
    del driver, runner, model  # the limits need the memory
    gc.collect()
    next_is("the machine's limits")
    machine, found = _limits(threads, load.packed)
    progress(figures, figures, "")
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
        "machine": {**host.machine(), "threads": threads, "runner": name, **found},
        "load_seconds": load_seconds,
        "first_token_seconds": prompt_seconds,
        "prefill": _prefill(load, machine, request.prompt, prompt_seconds),
        "decode": [
            _decode(load, machine, batch, request.context, seconds)
            for batch, seconds in decoded.items()
        ],
        "long_context": long and {
            **_decode(load, machine, 1, long[0], long[1]),
            "slowdown": statistics.median(long[1]) / statistics.median(decoded[1]),
            "whole": long[0] + STEPS + 1 >= load.config.max_position_embeddings,
        },
        "peak_bytes": peak,
    }  # fmt: skip


def runner_of(model: Gemma, threads: int, cache: str | None = None) -> Runner:
    """The native runner on so many threads where it can run `model`, else the plain one."""
    if NativeRunner.supports(model):
        return NativeRunner(model, cache=cache, threads=threads)
    return TorchRunner(model)


def _dtype(model: Gemma) -> str:
    return str(model.norm.weight.dtype).removeprefix("torch.")


def _long_context(
    request: SpeedRequest, driver: Driver, model: Gemma, seconds_per_token: float
) -> tuple[int, list[float]] | None:
    """The longest context that can be filled in reasonable time, and the seconds of steps there."""
    context = model.config.max_position_embeddings - STEPS - 1
    affordable = int(_LONG_SECONDS / seconds_per_token)
    if context > affordable:
        context = 1 << max(0, affordable.bit_length() - 1)
    while context and not driver.engine.scheduler.can_ever_run(context + STEPS + 1):
        context //= 2
    if context < _LEAST_LONG * request.context:
        return None
    return context, driver.decode(1, context, STEPS)


def _limits(threads: int, packed: bool) -> tuple[roofline.Machine, dict[str, Any]]:
    speeds = machine_peak.read_speeds(sorted({1, threads}))
    integers, floats = machine_peak.int8_operations(threads), machine_peak.float32_operations()
    machine = roofline.Machine(speeds[threads], integers if packed and integers else floats)
    return machine, {
        "instruction_set": native.instruction_set() if native.available() else None,
        "last_level_cache_bytes": machine_peak.last_level_cache(),
        "read_bytes_per_second": {str(count): speed for count, speed in speeds.items()},
        "int8_operations_per_second": integers,
        "float32_operations_per_second": floats,
    }


def _prefill(
    load: roofline.Model, machine: roofline.Machine, tokens: int, seconds: float
) -> dict[str, Any]:
    floor = load.prompt(machine, tokens)
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "floor_tokens_per_second": tokens / floor.seconds,
        "share_of_floor": floor.seconds / seconds,
        "bound": floor.bound,
    }


def _decode(
    load: roofline.Model, machine: roofline.Machine, batch: int, context: int, steps: list[float]
) -> dict[str, Any]:
    seconds = statistics.median(steps)
    floor = load.step(machine, batch, context + len(steps) / 2)
    return {
        "batch": batch,
        "context": context,
        "tokens_per_second": batch / seconds,
        "step_seconds": seconds,
        "bytes_per_token": floor.bytes_read / batch,
        "floor_tokens_per_second": batch / floor.seconds,
        "share_of_floor": floor.seconds / seconds,
        "bound": floor.bound,
    }
