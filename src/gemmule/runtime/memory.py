"""Memory of this machine, of a GPU and of this process: the one place where it is read."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def machine() -> int | None:
    """Physical memory of the machine in bytes; None where the system does not say."""
    return _sysconf() or _meminfo("MemTotal")


def usable() -> int | None:
    """Bytes this process may use: the machine's, or its control group's limit if that is lower."""
    limits = [limit for limit, _ in _control_groups()]
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
    sizes = [max(0, limit - used) for limit, used in _control_groups()]
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


def _meminfo(key: str) -> int | None:
    for line in _lines(_PROC / "meminfo"):
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _control_groups() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of every limited control group that this process belongs to."""
    for limit_file, use_file, cache_key in _control_group_files():
        limit, use = _number(limit_file), _number(use_file)
        if limit is None:
            continue
        # Cached file pages that were not used lately are dropped before anything runs out.
        cache = 0
        for line in _lines(limit_file.parent / "memory.stat"):
            if line.startswith(f"{cache_key} "):
                cache = int(line.split()[1])
        yield limit, max(0, (use or 0) - cache)


def _control_group_files() -> Iterator[tuple[Path, Path, str]]:
    """Files of limit and use, and the name of the inactive file cache, of version 2 and 1."""
    folders = [_CGROUP]
    for line in _lines(_PROC / "self" / "cgroup"):
        path = line.split(":", 2)[-1].strip("/")
        while path:  # a limit further up counts as well
            folders.append(_CGROUP / path)
            path = path.rpartition("/")[0]
    for folder in dict.fromkeys(folders):
        yield folder / "memory.max", folder / "memory.current", "inactive_file"
    old = _CGROUP / "memory"
    yield old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", "total_inactive_file"


def _number(path: Path) -> int | None:
    """The number that a file holds; None for "max" and for a file that is not there."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
