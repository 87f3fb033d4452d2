"""Applies the remaining restrictions to itself, then runs a program.

`python runner.py REPORT` reads its orders from standard input, in marshal's format, and writes
lines to the descriptor REPORT: "cannot REASON" if it could not follow them, "started" before the
program's first line, and then one line with the orders' secret followed by the result.
"""

from __future__ import annotations

import contextlib
import ctypes
import marshal
import os
import random
import resource
import signal
import stat
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing takes as long to import as all of the above
    from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3


def main() -> None:
    """Reads the orders, follows them, runs the program."""
    report = int(sys.argv[1])
    orders = marshal.loads(_read_all(0))  # standard input is then at its end for the program
    try:
        _restrict(orders)
    except (OSError, ValueError) as e:
        os.write(report, f"cannot {e}\n".encode())
        os._exit(1)
    os.write(report, b"started\n")
    _run(orders.pop("source"), orders.pop("secret"), report)


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def _restrict(orders: dict[str, Any]) -> None:
    sys.path += orders["packages"]
    random.seed(0)  # random numbers must not change a program's score
    if parent := orders["parent"]:
        _die_with(parent)
    for name, soft, hard in orders["rlimits"]:
        if hasattr(resource, name):
            _set_rlimit(getattr(resource, name), soft, hard)
    if orders["readable"]:
        _read_only(orders["readable"])
    if orders["filter"]:
        _filter_calls(orders["filter"])


def _set_rlimit(which: int, soft: int, hard: int) -> None:
    """Sets a limit, or keeps one that is already lower."""
    _, highest = resource.getrlimit(which)
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    try:
        resource.setrlimit(which, (soft, hard))
    except (OSError, ValueError):
        if sys.platform == "linux":
            raise
        # macOS refuses some of them; the guarantee says what that means.


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _call(function: str, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = getattr(libc, function)(
        *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    )
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
    return result


def _filter_calls(instructions: bytes) -> None:
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(buffer))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


def _read_only(readable: list[str]) -> None:
    """Landlock: only files at or below `readable` can be opened, and only for reading."""
    version = _call("syscall", _LANDLOCK_CREATE_RULESET, None, 0, 1)
    rights = 13 + (version >= 2) + (version >= 3) + (version >= 5)  # number of rights it knows
    handled = struct.pack("QQQ", (1 << rights) - 1, 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 8
    rules = _call("syscall", _LANDLOCK_CREATE_RULESET, handled, size, 0)
    for path in readable:
        fd = os.open(path, os.O_PATH)
        allowed = _READ_FILE | (_READ_DIR if stat.S_ISDIR(os.fstat(fd).st_mode) else 0)
        _call("syscall", _LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", allowed, fd), 0)
        os.close(fd)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call("syscall", _LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)


def _run(source: str, secret: str, report: int) -> NoReturn:
    # A program may replace these functions in their modules.
    write, leave, show = os.write, os._exit, sys.excepthook
    # Not __main__, as in the public graders: code under `if __name__ == "__main__"` does not run.
    module = type(sys)("program")
    sys.modules["program"] = module
    # Allocated now: a program that used up its memory leaves only this reserve to report it.
    reserve = bytearray(4 << 20)
    reports = {word: f"{secret} {word}\n".encode() for word in ("passed", "failed", "memory")}
    result, code = "passed", 0
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as e:
        del reserve
        result, code = _fault(e, show)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # closed, or not a stream any more
            stream.flush()
    write(report, reports[result])
    leave(code)


def _fault(e: BaseException, show: Any) -> tuple[str, int]:
    code = 1
    with contextlib.suppress(BaseException):  # no memory left to print it, or no stream
        if isinstance(e, SystemExit):
            code = e.code if isinstance(e.code, int) else 1
            print("SystemExit: the program left before its end", file=sys.stderr)
        else:
            e.__traceback__ = (
                e.__traceback__ and e.__traceback__.tb_next
            )  # without the runner's frame
            show(type(e), e, e.__traceback__)
    return ("memory" if isinstance(e, MemoryError) else "failed"), code


if __name__ == "__main__":
    main()
