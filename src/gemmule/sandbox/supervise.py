"""Runs one program from outside the sandbox: starts it, sends its source, reads pipes, ends it."""

import contextlib
import json
import marshal
import os
import secrets
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gemmule.errors import UserError
from gemmule.sandbox import view
from gemmule.sandbox.isolation import ENVIRONMENT, Isolation
from gemmule.sandbox.limits import Limits, Outcome, Status

KEPT = 4000  # characters of each stream in an outcome
_STARTUP = 60.0  # seconds; a loaded machine takes several
_POLL = 0.05  # seconds between two counts of threads and files
_REPORT = 4096  # largest report of a runner, in bytes


class Stopped(Exception):
    """The run was abandoned at the caller's request."""


class CannotStart(UserError):
    """The sandbox itself did not start."""


def run(
    isolation: Isolation,
    source: str,
    limits: Limits,
    packages: tuple[str, ...] = (),
    stop: threading.Event | None = None,
) -> Outcome:
    """Runs one program to its end or to its limits, and leaves nothing of it behind.

    Raises:
        CannotStart: if the sandbox cannot be set up.
        Stopped: if `stop` was set.
    """
    with _folder(isolation, packages) as folder:
        process = _Process(isolation, source, limits, packages, folder)
        try:
            return process.follow(stop or threading.Event())
        finally:
            process.end()
            process.close()


@contextlib.contextmanager
def _folder(isolation: Isolation, packages: tuple[str, ...]) -> Iterator[Path | None]:
    """A folder with an empty working folder and the packages, for a program that is not jailed."""
    if isolation.jailed:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="gemmule-program-") as name:
        folder = Path(name).resolve()
        (folder / "packages").mkdir()
        for package in view.packages(packages):
            (folder / "packages" / package.name).symlink_to(package)
        (folder / "work").mkdir()
        yield folder


class _Process:
    """The processes of one run, and everything read from them."""

    def __init__(
        self,
        isolation: Isolation,
        source: str,
        limits: Limits,
        packages: tuple[str, ...],
        folder: Path | None,
    ) -> None:
        self.isolation, self.limits = isolation, limits
        self.secret = secrets.token_hex(16)
        self.received = {name: bytearray() for name in ("stdout", "stderr", "report", "info")}
        self.began: float | None = None
        self._first = self._program = 0
        orders = isolation.orders(limits, packages, folder)
        self._unsent = memoryview(
            marshal.dumps({**orders, "source": source, "secret": self.secret})
        )
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as write_ends:
            pipes: dict[str, IO[bytes]] = {}
            inherited: dict[str, int] = {}
            for name in ("report", "info"):
                read, write = os.pipe()
                pipes[name] = on_failure.enter_context(os.fdopen(read, "rb", buffering=0))
                inherited[name] = write
                write_ends.callback(os.close, write)
            self.popen = subprocess.Popen(
                isolation.command(limits, packages, **inherited),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=ENVIRONMENT,
                cwd=folder / "work" if folder else "/",
                pass_fds=tuple(inherited.values()),
                start_new_session=True,
            )
            on_failure.pop_all()
        assert self.popen.stdin and self.popen.stdout and self.popen.stderr
        self._pipes = {**pipes, "stdout": self.popen.stdout, "stderr": self.popen.stderr}
        self._selector = selectors.DefaultSelector()
        for name, pipe in self._pipes.items():
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, name)
        os.set_blocking(self.popen.stdin.fileno(), False)
        self._selector.register(self.popen.stdin, selectors.EVENT_WRITE, "stdin")

    def follow(self, stop: threading.Event) -> Outcome:
        """Serves the pipes until the program ends or exceeds a limit."""
        created = time.monotonic()
        exceeded: Status | None = None
        while exceeded is None and self.popen.poll() is None:
            self._exchange()
            if stop.is_set():
                raise Stopped
            now = time.monotonic()
            if self.began is None:
                if now - created > _STARTUP:
                    raise CannotStart(f"nothing happened for {_STARTUP:.0f} s")
            elif now - self.began > self.limits.wall:
                exceeded = "timeout"
            else:
                exceeded = self._exceeded_limit()
        ended = time.monotonic()
        self.end()
        self._exchange(wait=0)
        if self.began is None:
            raise CannotStart(self._why_not())
        code = self._exit_code()
        status = exceeded or self._exceeded_limit() or self._status(code)
        return Outcome(
            status,
            code,
            _text(self.received["stdout"])[:KEPT],
            _text(self.received["stderr"])[-KEPT:],
            round(ended - self.began, 4),
        )

    def _exchange(self, wait: float = _POLL) -> None:
        """Reads what has arrived and sends what is unsent; waits at most `wait` seconds."""
        if not self._selector.get_map():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(wait)
            return
        for key, _ in self._selector.select(wait):
            if key.data == "stdin":
                self._send(key)
            elif not self._pipes[key.data].closed:  # by another event of this round
                self._receive(key)

    def _send(self, key: selectors.SelectorKey) -> None:
        try:
            self._unsent = self._unsent[os.write(key.fd, self._unsent[: 1 << 16]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._close(key.fileobj)

    def _receive(self, key: selectors.SelectorKey) -> None:
        try:
            data = os.read(key.fd, 1 << 16)
        except BlockingIOError:
            return
        self.received[key.data] += data
        if not data:
            self._close(key.fileobj)
        if self.began is None and self.received["report"].startswith(b"started\n"):
            self.began = time.monotonic()
            self._first = self._first_process()

    def _close(self, pipe: Any) -> None:
        self._selector.unregister(pipe)
        pipe.close()

    def _exceeded_limit(self) -> Status | None:
        """The exceeded limit, of those that neither the kernel nor the sandbox enforces."""
        written = len(self.received["stdout"]) + len(self.received["stderr"])
        if written > self.limits.output or len(self.received["report"]) > _REPORT:
            return "output"
        if self.popen.poll() is None and (program := self._find_program()):
            if _threads(program) > self.limits.threads:
                return "killed"
            if self.isolation.jailed and _files_in_scratch(program) > self.limits.files:
                return "killed"
        return None

    def _find_program(self) -> int:
        """The program's process number outside the sandbox; 0 while it is not known."""
        if not self._program and self.began is not None:
            if not self.isolation.jailed:
                self._program = self.popen.pid
            elif self._first:
                self._program = _child(self._first)
            if self._program:  # the first process to kill if this machine runs out of memory
                with contextlib.suppress(OSError):
                    Path(f"/proc/{self._program}/oom_score_adj").write_text("1000")
        return self._program

    def _first_process(self) -> int:
        """The number of the first process inside the sandbox: when it ends, all others end.

        Only information from before the program's first line can be trusted.
        """
        info = self._pipes["info"]
        if not info.closed:
            with contextlib.suppress(BlockingIOError):
                self.received["info"] += os.read(info.fileno(), _REPORT)
            self._close(info)
        try:
            return int(json.loads(self.received["info"])["child-pid"])
        except (ValueError, KeyError):
            return 0

    def _status(self, code: int) -> Status:
        last = self.received["report"].decode(errors="replace").split("\n")[1:2]
        for status in ("passed", "failed", "memory"):
            if last == [f"{self.secret} {status}"]:
                return status if status != "passed" or code == 0 else "failed"
        if code == -signal.SIGXCPU:
            return "timeout"
        return "killed" if code < 0 else "failed"

    def _exit_code(self) -> int:
        code = self.popen.returncode
        # The processes around a jailed program report signals as shells do.
        return 128 - code if self.isolation.jailed and 128 < code < 128 + 65 else code

    def _why_not(self) -> str:
        text = _text(self.received["report"]) + _text(self.received["stderr"])
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[0].removeprefix("cannot ") if lines else "it ended without a message"

    def end(self) -> None:
        """Ends all processes that still run, and waits for them."""
        if self.popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if self._first:
                    os.kill(self._first, signal.SIGKILL)
                else:
                    os.killpg(self.popen.pid, signal.SIGKILL)
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        elif not self.isolation.filtered:  # it may have left other processes behind
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def close(self) -> None:
        """Closes all open pipes."""
        for key in list(self._selector.get_map().values()):
            self._close(key.fileobj)
        self._selector.close()


def _text(data: bytearray) -> str:
    return data.decode("utf-8", errors="replace")


def _child(pid: int) -> int:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(children[0]) if children else 0


def _threads(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("\nThreads:")[2].split(maxsplit=1)[0] or 0)


def _files_in_scratch(pid: int) -> int:
    try:
        scratch = os.statvfs(f"/proc/{pid}/root/tmp")
    except OSError:
        return 0
    return scratch.f_files - scratch.f_ffree
