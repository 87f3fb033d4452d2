"""A folder is written by one process at a time.

    with locked(out):           # OutputError, exit code 2, while another process holds it
        train()

The lock is the operating system's (flock), on the file .lock in the folder: it ends with the
process that holds it, however that ends, so no stale lock is ever left. The file says who holds it.
Where several processes share the work on one folder, each locks its part of it. A path that appears
whole at the end, by a rename, is locked by a file next to it.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import math
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.console import console
from gemmule.errors import OutputError

_NAME = ".lock"
_PART = re.compile(r"\.lock(?:-(\d+)-of-(\d+))?")
# How file systems of the network and of FUSE say that they have no flock.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def locked(folder: Path, part: str = "1/1") -> Iterator[None]:
    """Holds the lock of `folder`, which is made when it is not there.

    Args:
        folder: where this process is going to write.
        part: the part of the work it does, as in "2/4"; disjoint parts do not exclude each other.

    Raises:
        OutputError: when another process holds the folder or an overlapping part, naming it; or
            when the folder cannot be written.
    """
    number, _, count = part.partition("/")
    name = _NAME if part == "1/1" else f"{_NAME}-{number}-of-{count}"
    with _made(folder, folder), _held(folder / name, folder):
        for other in sorted(folder.glob(f"{_NAME}*")):
            match = _PART.fullmatch(other.name)
            if match is None or other.name == name:
                continue
            k, n = int(match[1] or 1), int(match[2] or 1)
            if (k - int(number)) % math.gcd(n, int(count)) == 0:
                _refuse_if_held(other, folder)
        yield


@contextlib.contextmanager
def locked_output(path: Path) -> Iterator[None]:
    """Holds the lock of a file or folder that is put in place by a rename.

    Raises:
        OutputError: when another process is writing the same path, or its folder cannot be written.
    """
    file = files.staging(path.resolve(), _NAME.removeprefix("."))
    with _made(file.parent, path), _held(file, path):
        yield


def is_lock(path: Path) -> bool:
    """Whether a file of a folder is its lock, held or left by a process that was killed."""
    own = f".{path.parent.name}{_NAME}"  # of a folder that is put in place within itself
    return _PART.fullmatch(path.name) is not None or path.name == own


@contextlib.contextmanager
def _made(folder: Path, what: Path) -> Iterator[None]:
    """Makes a folder and its parents; in the end removes those that nothing was written into."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    with files.writing_to(what):
        if folder != what and folder.is_file():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def _held(file: Path, what: Path) -> Iterator[None]:
    fd = _acquire(file, what)
    if fd is None:
        yield
        return
    try:
        yield
    finally:
        # Removed while it is held: who opened it in the meantime sees that it is gone.
        with contextlib.suppress(OSError):
            file.unlink()
        os.close(fd)


def _acquire(file: Path, what: Path) -> int | None:
    """A descriptor that holds the lock; None where the file system has no locks."""
    while True:
        with files.writing_to(file):
            fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(fd, file):
                with files.writing_to(file):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, json.dumps(_this_process()).encode(), 0)
                return fd
            os.close(fd)  # its holder removed it between the two calls: once more
        except BlockingIOError:
            error = _refusal(fd, what)
            os.close(fd)
            raise error from None
        except OSError as e:
            os.close(fd)
            if e.errno not in _UNSUPPORTED:
                raise
            console.print(
                f"the file system of {what} has no locks: do not let two processes write there",
                style="dim",
                markup=False,
            )
            return None
        except BaseException:
            os.close(fd)
            raise


def _refuse_if_held(file: Path, what: Path) -> None:
    """Raises when another process holds the lock `file`."""
    try:
        fd = os.open(file, os.O_RDWR)
    except OSError:
        return  # released meanwhile
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(fd, what) from None
    except OSError:
        return
    finally:
        os.close(fd)


def _is_still(fd: int, file: Path) -> bool:
    """Whether `file` is still the file that was opened."""
    try:
        return os.path.samestat(os.fstat(fd), file.stat())
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _refusal(fd: int, what: Path) -> OutputError:
    try:
        holder: Mapping[str, Any] = json.loads(os.pread(fd, 65536, 0))
        where = "" if holder["host"] == socket.gethostname() else f" on {holder['host']}"
        by = f"process {holder['process']}{where} ({holder['command']}) since {holder['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        by = "another process"  # which has only just locked it
    return OutputError(
        f"{what} is being written by {by}: wait until it has ended, stop it, or choose another "
        "folder"
    )
