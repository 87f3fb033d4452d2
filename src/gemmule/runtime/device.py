"""Resolves what a run leaves to the machine: device, threads, dtype, compilation."""

import functools
import time
from typing import TypeVar

import torch

from gemmule.errors import ConfigError
from gemmule.runtime import host, torch_compile
from gemmule.runtime.config import RuntimeConfig
from gemmule.runtime.threads import set_up_torch
from gemmule.runtime.world import SOLO, World

C = TypeVar("C", bound=RuntimeConfig)

COMPILE_PAYS_FROM = 1.5e13  # floating-point operations: about two minutes on two cores


def resolve(config: C, flops: float, world: World = SOLO) -> C:
    """Replaces every "auto" by this machine's best choice, so that a resumed run repeats it.

    Also sets the number of threads that torch uses in this process. What is measured or depends on
    the machine is decided by the first rank for all.

    Args:
        config: settings as the user wrote them.
        flops: floating-point operations of the whole run.
        world: the ranks of the run; those of one machine share its cores.

    Raises:
        ConfigError: for a device or compiler that is not there.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': torch finds no CUDA device here; use device = 'cpu'")
    set_up_torch()
    threads = config.threads or max(1, host.usable_cores() // world.local_size)
    torch.set_num_threads(threads)
    dtype: str = config.dtype
    if dtype == "auto":
        halves = world.agree(world.first and fastest_dtype(device) == "bfloat16")
        dtype = "bfloat16" if halves else "float32"
    compiled = config.compile
    if compiled == "auto":
        compiled = world.agree(flops >= COMPILE_PAYS_FROM and torch_compile.can_compile())
    elif compiled and not torch_compile.can_compile():
        raise ConfigError("compile = true: torch.compile finds no working C++ compiler here")
    return config.model_copy(
        update={"device": device, "threads": threads, "dtype": dtype, "compile": compiled}
    )


@functools.cache
def fastest_dtype(device: str) -> str:
    """bfloat16 where it multiplies matrices clearly faster than float32, else float32."""
    # A processor without bfloat16 products emulates them, seventy times slower than float32: small
    # matrices show that at once, large ones would take half a minute.
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
        device: device that multiplies.
        dtype: type of the matrices.
        seconds: time to go on measuring, to see past other work of the moment; at least six
            products are measured.
        size: rows of the matrices; None takes a size that shows the device's best rate.
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
