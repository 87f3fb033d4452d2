"""Work that may hang, crash or fill the memory, in processes that are killed when it does."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MEMORY = 4 << 30  # bytes of address space
_PATIENCE = 30  # times as long by the clock: for a job that waits for something
_READY = b"ready\n"
_JOBS_EACH = 25  # that starting one more process is worth


@dataclass(frozen=True)
class Ended:
    """A job that has no answer.

    Attributes:
        why: what became of it, "took more than 5 s of processor time".
    """

    why: str


def answers(module: str, jobs: Sequence[Any], seconds: int) -> list[Any]:
    """What a worker makes of each job, in their order; an `Ended` where it came to nothing.

    Args:
        module: of the worker, which calls `serve`.
        jobs: JSON values.
        seconds: of processor time for each: how busy the machine is changes nothing.

    Raises:
        RuntimeError: when a worker cannot be started.
    """
    found: list[Any] = [None] * len(jobs)
    todo = iter(enumerate(jobs))
    lock = threading.Lock()
    workers = [_Worker(module, seconds) for _ in range(_count(len(jobs)))]
    troubles: list[Exception] = []

    def work(worker: _Worker) -> None:
        try:
            while not worker.stopped:
                with lock:
                    place, job = next(todo, (-1, None))
                if place < 0:
                    return
                found[place] = worker.answer(job)
        except Exception as e:
            troubles.append(e)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for worker in workers:
            worker.stop()
    if troubles:
        raise troubles[0]
    return found


def serve(answer: Callable[[Any], Any]) -> None:
    """A worker's main loop: jobs from standard input, one a line, answers to standard output.

    What the work itself prints goes nowhere. Processor time is limited by a signal that ends the
    process without asking Python: code inside a library cannot put it off.
    """
    seconds = int(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _limit_memory()
    # Limits by the clock would make a mark depend on what else the machine does.
    signal.alarm = lambda _: 0
    out.write(_READY)
    os.dup2(nowhere, 2)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = {"answer": answer(json.loads(line))}
        except MemoryError:
            reply = {"ended": "ran out of memory"}
        except Exception as e:  # whatever a parser makes of hostile text
            reply = {"ended": f"{type(e).__name__}: {str(e)[:200]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(reply).encode() + b"\n")


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # a system that knows no such limit
        pass


def _count(jobs: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, 8, math.ceil(jobs / _JOBS_EACH)))


class _Worker:
    """One process at a time, replaced when it ends."""

    def __init__(self, module: str, seconds: int) -> None:
        self.stopped = False
        self._module = module
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def answer(self, job: Any) -> Any:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            reply = _line(process, self._seconds * _PATIENCE)
        except BrokenPipeError:
            reply = b""
        if reply.endswith(b"\n"):
            said = json.loads(reply)
            return Ended(said["ended"]) if "ended" in said else said["answer"]
        return Ended(self._why(process))

    def stop(self) -> None:
        self.stopped = True
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                # Sets are then walked in one order, and Ctrl-C is the parent's to handle.
                env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._process = process
            if self.stopped or _line(process, 300) != _READY:
                self._end()
                said.seek(0)
                raise RuntimeError(f"{self._module} does not start: {said.read().decode()[-2000:]}")
        return process

    def _why(self, process: subprocess.Popen[bytes]) -> str:
        try:
            code = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return f"no answer within {self._seconds * _PATIENCE} s"
        finally:
            self._end()
        if code == -signal.SIGPROF:
            return f"took more than {self._seconds} s of processor time"
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):  # of what it had not read
                        pipe.close()


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line of a worker, or what there is of it when it ends or the time is over."""
    assert process.stdout
    parts = []
    for part in _parts(process.stdout.fileno(), seconds):
        parts.append(part)
        if part.endswith(b"\n"):
            break
    return b"".join(parts)


def _parts(descriptor: int, seconds: float) -> Iterator[bytes]:
    while select.select([descriptor], [], [], seconds)[0]:
        part = os.read(descriptor, 1 << 16)
        if not part:
            return
        yield part
