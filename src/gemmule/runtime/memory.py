"""Memory of the machine and of this process."""

import ctypes


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
