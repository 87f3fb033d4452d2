"""Turns a mapped file's pages into huge ones while others read them.

A model that is mapped starts at once, but each step then reads it through pages of 4 KiB, which
takes up to twice as long as through pages of 2 MiB. File systems with large folios (ext4 from Linux
6.16, XFS) give a mapped file huge pages by themselves. Elsewhere a thread copies one piece after
the other into anonymous huge pages and moves them over the file's. Addresses and contents stay the
same, so that readers notice nothing. Only on Linux.
"""

import ctypes
import functools
import mmap
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HUGE = 2**21
_PIECE = 2**25  # bytes that are copied and moved at once
_PRIVATE_ANONYMOUS, _READ_WRITE = 0x22, 0x3  # mmap's flags and protection
_MAYMOVE, _FIXED = 1, 2  # mremap's flags
_FAILED = ctypes.c_void_p(-1).value
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPINGS = Path("/proc/self/smaps")


class HugePages:
    """The huge pages of one mapping, which are made at most once.

    From then on the file's pages must not be released: these would be lost.

    Args:
        mapping: the mapping, which is kept until all is done.
        address: where it is.
    """

    def __init__(self, mapping: mmap.mmap, address: int) -> None:
        self._mapping: mmap.mmap | None = mapping
        self._address, self._nbytes = address, len(mapping)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """None in a copy, or in another process: its tensors are in memory of its own."""
        return type(None), ()

    def start(self) -> None:
        """Begins, in a thread, unless it was begun before; returns at once."""
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="huge pages", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Waits for the end of what `start` began."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        stop = (self._address + self._nbytes) // HUGE * HUGE
        first = -(-self._address // HUGE) * HUGE
        if _helps() and not _is_huge(self._address, self._nbytes):
            for start in range(first, stop, _PIECE):
                if not _replace(start, min(_PIECE, stop - start)):
                    break  # the rest stays as it is, which is as good as before
        self._mapping = None


def _helps() -> bool:
    """Whether the system has huge pages to give."""
    try:
        return sys.platform == "linux" and "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _is_huge(address: int, nbytes: int) -> bool:
    """Whether most of a mapping is in huge pages."""
    try:
        return 2 * sum(_huge_bytes(address, address + nbytes)) > nbytes
    except (OSError, ValueError):
        return False


def _huge_bytes(start: int, stop: int) -> Iterator[int]:
    """Sizes of the huge pages of each mapping within [start, stop)."""
    within = False
    with _MAPPINGS.open() as f:
        for line in f:
            name, *values = line.split()
            if not name.endswith(":"):
                within = start <= int(name.partition("-")[0], 16) < stop
            elif within and name in ("FilePmdMapped:", "AnonHugePages:"):
                yield int(values[0]) * 1024


@functools.cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = (address, size, number, number, number, ctypes.c_long)
    libc.munmap.argtypes = (address, size)
    libc.madvise.argtypes = (address, size, number)
    libc.mremap.argtypes = (address, size, size, number, address)
    libc.mmap.restype = libc.mremap.restype = address
    return libc


def _replace(start: int, nbytes: int) -> bool:
    """Puts anonymous memory with the same content in place of [start, start + nbytes)."""
    libc = _libc()
    room = libc.mmap(None, nbytes + HUGE, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    if room == _FAILED:
        return False
    # Cut to a whole number of huge pages, which is then moved as a whole: nothing is left to free.
    fresh = -(-room // HUGE) * HUGE
    if fresh > room:
        libc.munmap(room, fresh - room)
    libc.munmap(fresh + nbytes, room + HUGE - fresh)
    libc.madvise(fresh, nbytes, mmap.MADV_HUGEPAGE)
    ctypes.memmove(fresh, start, nbytes)
    # The system holds back all readers of the place until the new pages are there.
    moved = libc.mremap(fresh, nbytes, nbytes, _MAYMOVE | _FIXED, start)
    if moved == _FAILED:
        libc.munmap(fresh, nbytes)
        return False
    return True
