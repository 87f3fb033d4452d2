"""Work that hangs, crashes or fills the memory: it ends, and the rest gets its answers."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gemmule.evals.benchmarks import worker_pool
from gemmule.evals.benchmarks.worker_pool import JobFailure

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of POSIX")

WORKER = """
import os, signal, sys, time
from gemmule.evals.benchmarks import worker_pool

def answer(job):
    kind = job["kind"]
    if kind == "endless":
        while True:
            pass
    if kind == "uninterruptible":  # by anything that needs the interpreter
        signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
        signal.alarm(1)
        9 ** 9 ** 9
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "leave":
        os._exit(3)
    if kind == "memory":
        bytearray(1 << 40)
    if kind == "deep":
        deep = "[" * 100000
        eval(deep)
    if kind == "print":
        print('{"answer": "forged"}', flush=True)
        print("noise", file=sys.stderr)
    if kind == "asleep":
        open(job["mark"], "w").write(str(os.getpid()))
        time.sleep(600)
    return job["number"], os.environ["PYTHONHASHSEED"]

worker_pool.serve(answer)
"""


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def job(number: int, kind: str = "", **more: str) -> dict[str, Any]:
    return {"number": number, "kind": kind, **more}


def test_answers_come_in_the_order_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_JOBS_PER_WORKER", 10)  # several workers
    result = worker_pool.run_jobs("hostile_worker", [job(n) for n in range(200)], 5)
    assert result == [[n, "0"] for n in range(200)]
    assert worker_pool.run_jobs("hostile_worker", [], 5) == []


def test_what_has_no_answer_is_told_and_the_rest_goes_on() -> None:
    kinds = ["endless", "uninterruptible", "crash", "leave", "memory", "deep", "print"]
    jobs = [job(n, kind) for n, kind in enumerate(kinds)] + [job(7)]
    result = worker_pool.run_jobs("hostile_worker", jobs, 1)
    assert result[:5] == [
        JobFailure("took more than 1 s of processor time"),
        JobFailure("took more than 1 s of processor time"),
        JobFailure("ended by SIGSEGV"),
        JobFailure("ended with exit code 3"),
        JobFailure("ran out of memory"),
    ]
    assert isinstance(result[5], JobFailure)
    assert result[6:] == [[6, "0"], [7, "0"]]


def test_a_worker_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"no_such_worker does not start: .*No module named"):
        worker_pool.run_jobs("no_such_worker", [job(0)], 1)


def test_waiting_has_an_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_PATIENCE", 3)
    jobs = [job(0, "asleep", mark=str(tmp_path / "mark")), job(1)]
    assert worker_pool.run_jobs("hostile_worker", jobs, 1) == [
        JobFailure("no answer within 3 s"),
        [1, "0"],
    ]


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def interrupt() -> None:
        while not (mark.exists() and mark.read_text()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    # A process that was started in the background ignores Ctrl-C unless told otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            worker_pool.run_jobs("hostile_worker", [job(0, "asleep", mark=str(mark))], 5)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
