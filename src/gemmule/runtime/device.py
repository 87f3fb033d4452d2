"""Fitting a run to the machine: device, threads, dtype."""

import functools
import time
from typing import TypeVar

import torch

from gemmule.errors import ConfigError
from gemmule.runtime import host, torch_compile
from gemmule.runtime.config import MachineConfig

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
    threads = config.threads or host.usable_cores()
    torch.set_num_threads(threads)
    dtype = config.dtype if config.dtype != "auto" else fastest_dtype(device)
    compiled = config.compile
    if compiled == "auto":
        compiled = flops >= COMPILE_EARNS_ITS_TIME and torch_compile.can_compile()
    elif compiled and not torch_compile.can_compile():
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
