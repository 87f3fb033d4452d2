"""Fitting a run to the machine: threads, dtype, memory, torch.compile."""

import ctypes
import functools
import time
import warnings
from typing import TypeVar

import torch

from gemmule import runlog
from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.runlog import console
from gemmule.train.config import MachineConfig, TrainConfig

C = TypeVar("C", bound=MachineConfig)

COMPILE_EARNS_ITS_TIME = 1.5e13  # floating-point operations: about two minutes on two cores


def resolve(config: C, flops: float) -> C:
    """Replaces every "auto" by what this machine is best at, so that a resumed run repeats it.

    Args:
        config: as the user wrote it.
        flops: what the whole run will take.

    Raises:
        ConfigError: for a device that is not there.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': torch finds no CUDA device here; use device = 'cpu'")
    threads = config.threads or runlog.usable_cores()
    torch.set_num_threads(threads)
    dtype = config.dtype if config.dtype != "auto" else fastest_dtype(device)
    compiled = config.compile
    if compiled == "auto":
        compiled = flops >= COMPILE_EARNS_ITS_TIME and can_compile()
    elif compiled and not can_compile():
        raise ConfigError("compile = true: torch.compile finds no working C++ compiler here")
    return config.model_copy(
        update={"device": device, "threads": threads, "dtype": dtype, "compile": compiled}
    )


@functools.cache
def fastest_dtype(device: str) -> str:
    """bfloat16 where it multiplies matrices clearly faster than float32, else float32."""
    # A processor without bfloat16 products emulates them, seventy times slower than float32: small
    # matrices show that in no time, large ones would take half a minute.
    for size in (128, None):
        half, full = (matmul_gflops(device, d, size=size) for d in (torch.bfloat16, torch.float32))
        if half < full:
            break
    return "bfloat16" if half > 1.5 * full else "float32"


def matmul_gflops(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seconds: float = 0.0,
    size: int | None = None,
) -> float:
    """Best rate of a square matrix product, in 1e9 operations a second.

    Args:
        device: where.
        dtype: of the matrices.
        seconds: go on for so long, to see past a moment's other work; six products at least.
        size: rows of the matrices; None takes what shows a processor's best rate.
    """
    size = size or (1024 if device == "cpu" else 4096)
    a = torch.ones(size, size, dtype=dtype, device=device)
    best, tries, end = 0.0, 0, time.monotonic() + seconds
    while tries < 6 or time.monotonic() < end:
        tries += 1
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # reading a value waits for an asynchronous device
        best = max(best, 2e-9 * size**3 / (time.perf_counter() - began))
    return best


def check_memory(config: TrainConfig, shape: GemmaConfig) -> None:
    """Refuses a run that cannot fit, by a lower bound of what it needs.

    Counts weights, gradients and optimiser states, what the backward pass keeps of a micro-batch,
    and the step's token ids.

    Raises:
        ConfigError: when this machine's memory is smaller than that.
    """
    memory = runlog.machine()["memory_gib"]
    if memory is None or config.device == "cuda" or torch.cuda.is_available():
        return  # a GPU says so itself, and at once
    states = 12 if config.optimizer.name == "muon" else 16
    width = 2 if config.dtype == "bfloat16" else 4
    kept = shape.num_hidden_layers * (4 * shape.hidden_size + 3 * shape.intermediate_size) * width
    need = shape.parameters * states
    need += config.micro_batch * config.seq_len * kept + config.tokens_per_step * 24
    if need > memory * 2**30:
        raise ConfigError(
            f"this run needs at least {need / 2**30:,.1f} GiB of memory (the model "
            f"{shape.parameters * states / 2**30:,.1f}) and this machine has {memory}: use a "
            "smaller preset, micro_batch_size or seq_len"
        )


@functools.cache
def can_compile() -> bool:
    """Whether torch.compile works here; tried for real, once, on a function of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.zeros(16))
    except Exception as e:  # whatever is missing, eager mode does the same job
        console.print(
            f"torch.compile does not work here ({type(e).__name__}): running without it, slower. "
            "A C++ compiler (g++ or clang++) is what it needs."
        )
        return False
    return True


def compile_blocks(model: Gemma) -> None:
    """Compiles each layer on its own: layers of one kind share one graph, so it is quick."""
    # One function serves every size and mode in the process; the default of 8 would stop short.
    torch._dynamo.config.recompile_limit = 64
    for layer in model.layers:
        layer.compile(dynamic=False)


def keep_freed_memory() -> None:
    """Asks glibc to keep freed memory for the next step instead of returning it each time.

    Training frees and asks for the same large buffers every step; without this a good part of
    a step goes to page faults. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt(trim_threshold, -1)
    mallopt(mmap_max, 0)
