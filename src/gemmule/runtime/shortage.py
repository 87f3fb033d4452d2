"""What the system refused for lack of it: memory, threads, files. One line with what to do."""

import errno
import re

_BYTES = re.compile(r"allocate (\d+) bytes")
_AMOUNT = re.compile(r"allocate ([\d.]+ [KMGT]i?B)")
_LESS = "end other programs, or choose a smaller model, batch or cache"
_MEMORY = f"out of memory{{}}: {_LESS}, or raise the limit (ulimit -v)"
_FILES = "too many open files{}: raise the limit (ulimit -n)"
# By a part of the message of torch, C++, the dynamic linker or Python; {} is how much was wanted.
_MESSAGES = {
    "DefaultCPUAllocator": _MEMORY,
    "bad_alloc": _MEMORY,
    "CUDA out of memory": f"out of memory on the GPU{{}}: {_LESS}",
    "failed to map segment": _MEMORY.replace("{}", " while a library was loaded"),
    "can't start new thread": (
        "a thread cannot be started: raise the limit of processes (ulimit -u, or pids.max of the "
        "control group) or of memory (ulimit -v)"
    ),
    "Too many open files": _FILES.replace("{}", ""),
    "No usable temporary directory": (
        "no folder for temporary files can be written: free some space, or set TMPDIR to one"
    ),
}
# By the number of an operating system's error; {} is the file's name.
_ERRORS = {
    errno.ENOMEM: _MEMORY,
    errno.EMFILE: _FILES,
    errno.ENFILE: "too many open files on this machine{}: end other programs",
    errno.EAGAIN: "a process cannot be started: raise the limit of processes (ulimit -u)",
}


def explain_shortage(error: BaseException) -> str | None:
    """What ran out and what to do, if that is what `error` says; else None.

    Args:
        error: an exception of Python, numpy, torch or the kernels.
    """
    if isinstance(error, OSError) and error.errno in _ERRORS:
        name = f" ({error.filename})" if error.filename else ""
        return _ERRORS[error.errno].format(name)
    text = str(error)
    matches = [line for part, line in _MESSAGES.items() if part in text]
    if not matches and not isinstance(error, MemoryError):
        return None
    return [*matches, _MEMORY][0].format(_wanted(text))


def _wanted(text: str) -> str:
    """How much was wanted, as far as the message says: " (8.0 GiB wanted)"."""
    count = _BYTES.search(text)
    if count:
        size, units = float(count[1]), iter(("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"))
        unit = next(units)
        while size >= 1024 and unit != "PiB":
            size, unit = size / 1024, next(units)
        return f" ({size:.{0 if unit == 'bytes' else 1}f} {unit} wanted)"
    amount = _AMOUNT.search(text)
    if amount:
        return f" ({amount[1]} wanted)"
    kernels = text.removeprefix("not enough memory for ")
    return f" for {kernels}" if kernels != text else ""
