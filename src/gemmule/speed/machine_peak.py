"""Upper bounds of the machine: bytes read from memory and matrix products per second.

Each is the best of several readings, since other processes can only make them smaller.
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
_MIN_BUFFER = 2**30  # bytes of the buffer that is read, if memory allows
_TIMES_THE_CACHE = 4
_SQUARE, _ROWS = 2048, 512  # shape of the integer product: its matrix stays in the caches


def last_level_cache() -> int | None:
    """Bytes of the largest cache as the system states it; None if it does not."""
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
    """Bytes to read so that caches help little, within a quarter of the free memory."""
    wanted = max(_MIN_BUFFER, _TIMES_THE_CACHE * (last_level_cache() or 0))
    return max(2**24, min(wanted, (memory.available() or 2**32) // 4)) // 4096 * 4096


def read_speeds(threads: list[int], size: int | None = None) -> dict[int, float]:
    """Bytes per second read from memory, by number of threads.

    Args:
        threads: numbers of threads to try, one after the other within each round.
        size: bytes of the buffer; None: see `buffer_size`.
    """
    size = buffer_size() if size is None else size
    data = empty((size,), torch.uint8, torch.device("cpu"))
    data.fill_(1)
    readers = {count: _reader(data, count) for count in threads}
    speeds = dict.fromkeys(threads, 0.0)
    for _ in range(_READINGS):
        for count, read in readers.items():
            speeds[count] = max(speeds[count], read())
    return speeds


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
    """Operations per second of our int8 product; None without the native library."""
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
    """Operations per second of torch's float32 product, on torch's number of threads."""
    return matmul_gflops() * 1e9
