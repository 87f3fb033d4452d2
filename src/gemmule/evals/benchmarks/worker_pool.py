"""Jobs that may hang, crash or fill the memory, run in worker processes that are then killed."""

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

from gemmule.runtime import host

MEMORY = 4 << 30  # bytes of address space
_PATIENCE = 30  # wall-clock limit as a multiple of the processor time: for a job that waits
_READY = b"ready\n"
_JOBS_PER_WORKER = 25  # number of jobs that justify another process


@dataclass(frozen=True)
class JobFailure:
    """A job without a result.

    Attributes:
        reason: what happened, such as "took more than 5 s of processor time".
    """

    reason: str


def run_jobs(module: str, jobs: Sequence[Any], seconds: int) -> list[Any]:
    """Runs jobs in worker processes.

    Args:
        module: the worker's module, which calls `serve`.
        jobs: JSON values.
        seconds: processor time for each job; the load of the machine does not matter.

    Returns:
        The result of each job in order, or a `JobFailure`.

    Raises:
        RuntimeError: if a worker cannot be started.
    """
    results: list[Any] = [None] * len(jobs)
    queue = iter(enumerate(jobs))
    lock = threading.Lock()
    workers = [_Worker(module, seconds) for _ in range(_worker_count(len(jobs)))]
    errors: list[Exception] = []

    def work(worker: _Worker) -> None:
        try:
            while not worker.stopped:
                with lock:
                    index, job = next(queue, (-1, None))
                if index < 0:
                    return
                results[index] = worker.run(job)
        except Exception as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for worker in workers:
            worker.stop()
    if errors:
        raise errors[0]
    return results


def serve(run: Callable[[Any], Any]) -> None:
    """A worker's main loop: jobs from standard input, one a line, results to standard output.

    Anything that a job prints is discarded. Processor time is limited by a signal that ends the
    process without going through Python, so code inside a library cannot delay it.

    Args:
        run: computes the result of a job.
    """
    seconds = int(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    _limit_memory()
    # Wall-clock limits would make a score depend on what else the machine does.
    signal.alarm = lambda _: 0
    out.write(_READY)
    os.dup2(devnull, 2)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = {"answer": run(json.loads(line))}
        except MemoryError:
            reply = {"ended": "ran out of memory"}
        except Exception as e:  # whatever a parser raises on hostile text
            reply = {"ended": f"{type(e).__name__}: {str(e)[:200]}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(reply).encode() + b"\n")


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # a system without this limit
        pass


def _worker_count(jobs: int) -> int:
    return max(1, min(host.usable_cores(), 8, math.ceil(jobs / _JOBS_PER_WORKER)))


class _Worker:
    """One process at a time, replaced when it ends."""

    def __init__(self, module: str, seconds: int) -> None:
        self.stopped = False
        self._module = module
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, job: Any) -> Any:
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            line = _line(process, self._seconds * _PATIENCE)
        except BrokenPipeError:
            line = b""
        if line.endswith(b"\n"):
            reply = json.loads(line)
            return JobFailure(reply["ended"]) if "ended" in reply else reply["answer"]
        return JobFailure(self._reason(process))

    def stop(self) -> None:
        self.stopped = True
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._module, str(self._seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # A fixed hash seed fixes the order of sets. Ctrl-C is for the parent to handle.
                env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
            self._process = process
            if self.stopped or _line(process, 300) != _READY:
                self._end()
                errors.seek(0)
                message = errors.read().decode()[-2000:]
                raise RuntimeError(f"{self._module} does not start: {message}")
        return process

    def _reason(self, process: subprocess.Popen[bytes]) -> str:
        """Why the process did not reply."""
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
                    with contextlib.suppress(BrokenPipeError):  # it had not read everything
                        pipe.close()


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line of a worker, or the part it wrote before it ended or ran out of time."""
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
