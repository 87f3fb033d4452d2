"""Memory of this machine, of a GPU and of this process: the one place where it is read."""

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gemmule.runtime import cgroups

if TYPE_CHECKING:
    import torch

_PROC = Path("/proc")


def machine() -> int | None:
    """Physical memory of the machine in bytes; None where the system does not say."""
    return _sysconf() or _meminfo("MemTotal")


def usable() -> int | None:
    """Bytes this process may use: the machine's, or the lowest limit if one is lower."""
    limits = [group.limit for group in cgroups.memory_limits()]
    limits += [limit for limit, _ in _process_limits()]
    total = machine()
    return min(limits + ([] if total is None else [total]), default=None)


def available(device: "torch.device | str" = "cpu") -> int | None:
    """Bytes that can be allocated now: on the host without swapping, or free on a GPU.

    Args:
        device: "cpu", or a CUDA device; of that, memory that PyTorch has reserved and does not use
            counts as free.

    Returns:
        None where the system does not say.
    """
    if str(device).startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    sizes = [max(0, group.limit - group.used) for group in cgroups.memory_limits()]
    sizes += [max(0, limit - used) for limit, used in _process_limits()]
    free_on_host = _meminfo("MemAvailable")
    return min(sizes + ([] if free_on_host is None else [free_on_host]), default=None)


def peak() -> int:
    """The most resident memory this process has had, in bytes."""
    # getrusage's figure outlives exec: it may be that of the process that started this one.
    for line in _lines(_PROC / "self" / "status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Asks glibc to keep freed memory for the next step instead of returning it each time.

    Training frees and allocates the same large buffers every step; without this a good part of a
    step is spent on page faults. Does nothing with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt(trim_threshold, -1)
    mallopt(mmap_max, 0)


def _sysconf() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _process_limits() -> list[tuple[int, int]]:
    """The limits of address space (ulimit -v) and data (ulimit -d) with what is used of them."""
    limits = []
    for name, key in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        limit = resource.getrlimit(name)[0]
        if limit != resource.RLIM_INFINITY:
            status = (line.split() for line in _lines(_PROC / "self" / "status"))
            used = [int(parts[1]) * 1024 for parts in status if parts[:1] == [key]]
            limits.append((limit, sum(used)))
    return limits


def _meminfo(key: str) -> int | None:
    for line in _lines(_PROC / "meminfo"):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
