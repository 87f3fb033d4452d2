"""Forks of this process: what they leave behind in the child, and what works in both.

A fork has one thread, the one that called fork. Locks that other threads held stay locked, and
threads that others wait for are not there. The native kernels notice a fork by themselves (see
native/threads.hpp), the engines are told with `in_child`, and torch is helped here.
"""

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_owners: "weakref.WeakKeyDictionary[object, Callable[[], None]]" = weakref.WeakKeyDictionary()


def in_child(owner: T, hook: Callable[[T], None]) -> None:
    """Has `hook(owner)` called in every fork of this process, before anything else runs there.

    Args:
        owner: an object, which this does not keep alive.
        hook: a plain function or a method of its class; it may find the locks of threads held.
    """
    reference = weakref.ref(owner)

    def call() -> None:
        alive = reference()
        if alive is not None:
            hook(alive)

    _owners[owner] = call


def _run_hooks() -> None:
    for call in list(_owners.values()):
        call()


@cache
def keep_torch_usable() -> None:
    """Keeps torch's operators usable in forks of this process, on as many threads.

    GNU's OpenMP library, which torch's builds for Linux bring along, waits forever for threads that
    a fork does not have. Each thread has a pool of its own there: that of the forking thread is
    ended before the fork, and parent and child start another when they need it. Other OpenMP
    libraries see to it themselves.
    """
    pauses = _gnu_openmp_pauses()

    def end_pools() -> None:
        for pause in pauses:
            pause(_PAUSE_HARD)

    os.register_at_fork(before=end_pools)


_PAUSE_HARD = 2  # omp_pause_hard of omp.h


def _gnu_openmp_pauses() -> list[Callable[[int], int]]:
    """omp_pause_resource_all of each GNU OpenMP library that is loaded; torch must be."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    pauses: list[Callable[[int], int]] = []
    for path in sorted(paths):
        with contextlib.suppress(OSError, AttributeError):  # a file deleted since; an old library
            pauses.append(ctypes.CDLL(path).omp_pause_resource_all)
    return pauses


os.register_at_fork(after_in_child=_run_hooks)
