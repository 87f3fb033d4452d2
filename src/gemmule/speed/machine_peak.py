"""What the machine can do at most: bytes read from memory, and matrix products, in a second.

Limits are the best of several readings: whatever else runs can only make them smaller.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from gemmule.checkpoints.stored_tensor import empty
from gemmule.quant import native, packed
from gemmule.runtime import memory
from gemmule.runtime.device import matmul_gflops

_READINGS = 5
_LEAST = 2**30  # bytes of the buffer that is read, where memory allows
_TIMES_THE_CACHE = 4
_SQUARE, _ROWS = 2048, 512  # of the integer product: its matrix stays in the caches


def last_level_cache() -> int | None:
    """Bytes of the largest cache as the system states it; None where it says nothing."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        sizes += [int(digits) * unit] if digits.isdigit() else []
    return max(sizes, default=None)


def buffer_size() -> int:
    """Bytes to read so that caches are of little help, within a quarter of what is free."""
    wanted = max(_LEAST, _TIMES_THE_CACHE * (last_level_cache() or 0))
    return max(2**24, min(wanted, (memory.available() or 2**32) // 4)) // 4096 * 4096


def read_speeds(threads: list[int], size: int | None = None) -> dict[int, float]:
    """Bytes a second read from memory by so many threads.

    Args:
        threads: counts to try, one after the other within each round.
        size: of the buffer; None: see `buffer_size`.
    """
    size = buffer_size() if size is None else size
    data = empty((size,), torch.uint8, torch.device("cpu"))
    data.fill_(1)
    readers = {count: _reader(data, count) for count in threads}
    found = dict.fromkeys(threads, 0.0)
    for _ in range(_READINGS):
        for count, read in readers.items():
            found[count] = max(found[count], read())
    return found


def _reader(data: torch.Tensor, threads: int) -> Callable[[], float]:
    if native.available():
        pool = native.threads(threads)
        return lambda: native.read_speed(data, pool)

    def reduced() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        began = time.perf_counter()
        data.view(torch.float32).sum().item()
        seconds = time.perf_counter() - began
        torch.set_num_threads(before)
        return data.nbytes / seconds

    return reduced


def int8_operations(threads: int) -> float | None:
    """Operations a second of our own int8 product; None without the native library."""
    if not native.available():
        return None
    generator = torch.Generator().manual_seed(0)
    matrix = packed.quantize(torch.randn(_SQUARE, _SQUARE, generator=generator), "int8")
    x_MK = torch.randn(_ROWS, _SQUARE, generator=generator)
    pool, best = native.threads(threads), 0.0
    for _ in range(2 * _READINGS):
        began = time.perf_counter()
        native.linear(matrix, x_MK, pool)
        best = max(best, 2.0 * _ROWS * _SQUARE**2 / (time.perf_counter() - began))
    return best


def float32_operations() -> float:
    """Operations a second of torch's float32 product, on as many threads as torch uses."""
    return matmul_gflops() * 1e9
