"""One program's run, seen from outside: started, fed, listened to, ended."""

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
_STARTUP = 60.0  # seconds; loaded machines take some
_GLANCE = 0.05  # seconds between two looks at threads and files
_REPORT = 4096  # bytes that a runner's report can have


class Stopped(Exception):
    """The run was given up because its caller wants to end."""


class CannotStart(UserError):
    """The sandbox itself did not come up."""


def run(
    kind: Isolation,
    source: str,
    limits: Limits,
    packages: tuple[str, ...] = (),
    stop: threading.Event | None = None,
) -> Outcome:
    """Runs one program to its end or to its limits; nothing of it is left behind.

    Raises:
        CannotStart: when the sandbox cannot be set up.
        Stopped: when `stop` was set.
    """
    with _folder(kind, packages) as folder:
        process = _Process(kind, source, limits, packages, folder)
        try:
            return process.follow(stop or threading.Event())
        finally:
            process.end()
            process.close()


@contextlib.contextmanager
def _folder(kind: Isolation, packages: tuple[str, ...]) -> Iterator[Path | None]:
    """An empty folder to work in, with the packages beside it, for what is not jailed."""
    if kind.jailed:
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
    """The processes of one run, and what has been heard of them."""

    def __init__(
        self,
        kind: Isolation,
        source: str,
        limits: Limits,
        packages: tuple[str, ...],
        folder: Path | None,
    ) -> None:
        self.kind, self.limits = kind, limits
        self.secret = secrets.token_hex(16)
        self.heard = {name: bytearray() for name in ("stdout", "stderr", "report", "info")}
        self.began: float | None = None
        self._first = self._program = 0
        orders = kind.orders(limits, packages, folder)
        self._unsent = memoryview(
            marshal.dumps({**orders, "source": source, "secret": self.secret})
        )
        with contextlib.ExitStack() as at_failure, contextlib.ExitStack() as ours_alone:
            pipes: dict[str, IO[bytes]] = {}
            theirs: dict[str, int] = {}
            for name in ("report", "info"):
                read, write = os.pipe()
                pipes[name] = at_failure.enter_context(os.fdopen(read, "rb", buffering=0))
                theirs[name] = write
                ours_alone.callback(os.close, write)
            self.popen = subprocess.Popen(
                kind.command(limits, packages, **theirs),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=ENVIRONMENT,
                cwd=folder / "work" if folder else "/",
                pass_fds=tuple(theirs.values()),
                start_new_session=True,
            )
            at_failure.pop_all()
        assert self.popen.stdin and self.popen.stdout and self.popen.stderr
        self._pipes = {**pipes, "stdout": self.popen.stdout, "stderr": self.popen.stderr}
        self._selector = selectors.DefaultSelector()
        for name, pipe in self._pipes.items():
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, name)
        os.set_blocking(self.popen.stdin.fileno(), False)
        self._selector.register(self.popen.stdin, selectors.EVENT_WRITE, "stdin")

    def follow(self, stop: threading.Event) -> Outcome:
        """Listens until the program ends or breaks a limit."""
        created = time.monotonic()
        broken: Status | None = None
        while broken is None and self.popen.poll() is None:
            self._listen()
            if stop.is_set():
                raise Stopped
            now = time.monotonic()
            if self.began is None:
                if now - created > _STARTUP:
                    raise CannotStart(f"nothing happened for {_STARTUP:.0f} s")
            elif now - self.began > self.limits.wall:
                broken = "timeout"
            else:
                broken = self._beyond()
        ended = time.monotonic()
        self.end()
        self._listen(wait=0)
        if self.began is None:
            raise CannotStart(self._why_not())
        code = self._exit_code()
        status = broken or self._beyond() or self._status(code)
        return Outcome(
            status,
            code,
            _text(self.heard["stdout"])[:KEPT],
            _text(self.heard["stderr"])[-KEPT:],
            round(ended - self.began, 4),
        )

    def _listen(self, wait: float = _GLANCE) -> None:
        """Takes what there is to hear, and sends what is still unsent; waits at most a glance."""
        if not self._selector.get_map():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(wait)
            return
        for key, _ in self._selector.select(wait):
            if key.data == "stdin":
                self._send(key)
            elif not self._pipes[key.data].closed:  # by another event of this round
                self._hear(key)

    def _send(self, key: selectors.SelectorKey) -> None:
        try:
            self._unsent = self._unsent[os.write(key.fd, self._unsent[: 1 << 16]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._close(key.fileobj)

    def _hear(self, key: selectors.SelectorKey) -> None:
        try:
            data = os.read(key.fd, 1 << 16)
        except BlockingIOError:
            return
        self.heard[key.data] += data
        if not data:
            self._close(key.fileobj)
        if self.began is None and self.heard["report"].startswith(b"started\n"):
            self.began = time.monotonic()
            self._first = self._first_process()

    def _close(self, pipe: Any) -> None:
        self._selector.unregister(pipe)
        pipe.close()

    def _beyond(self) -> Status | None:
        """The limit that the program is beyond, of those that nobody else keeps."""
        written = len(self.heard["stdout"]) + len(self.heard["stderr"])
        if written > self.limits.output or len(self.heard["report"]) > _REPORT:
            return "output"
        if self.popen.poll() is None and (program := self._find_program()):
            if _threads(program) > self.limits.threads:
                return "killed"
            if self.kind.jailed and _files_in_scratch(program) > self.limits.files:
                return "killed"
        return None

    def _find_program(self) -> int:
        """The program's process number, as seen here; 0 where it is not known (yet)."""
        if not self._program and self.began is not None:
            if not self.kind.jailed:
                self._program = self.popen.pid
            elif self._first:
                self._program = _child(self._first)
            if self._program:  # should memory run out on this machine, let it be the first to go
                with contextlib.suppress(OSError):
                    Path(f"/proc/{self._program}/oom_score_adj").write_text("1000")
        return self._program

    def _first_process(self) -> int:
        """The first process inside the sandbox, as seen here: with it, everything there ends.

        Only what was said before the program's first line is believed.
        """
        info = self._pipes["info"]
        if not info.closed:
            with contextlib.suppress(BlockingIOError):
                self.heard["info"] += os.read(info.fileno(), _REPORT)
            self._close(info)
        try:
            return int(json.loads(self.heard["info"])["child-pid"])
        except (ValueError, KeyError):
            return 0

    def _status(self, code: int) -> Status:
        last = self.heard["report"].decode(errors="replace").split("\n")[1:2]
        for status in ("passed", "failed", "memory"):
            if last == [f"{self.secret} {status}"]:
                return status if status != "passed" or code == 0 else "failed"
        if code == -signal.SIGXCPU:
            return "timeout"
        return "killed" if code < 0 else "failed"

    def _exit_code(self) -> int:
        code = self.popen.returncode
        # What stands around a jailed program speaks of signals as shells do.
        return 128 - code if self.kind.jailed and 128 < code < 128 + 65 else code

    def _why_not(self) -> str:
        said = _text(self.heard["report"]) + _text(self.heard["stderr"])
        lines = [line for line in said.splitlines() if line.strip()]
        return lines[0].removeprefix("cannot ") if lines else "it ended without a word"

    def end(self) -> None:
        """Ends whatever still runs, and waits until it is gone."""
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
        elif not self.kind.filtered:  # it may have left others behind
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)

    def close(self) -> None:
        """Closes what is still open."""
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
