"""Fuzzing a target: batches of inputs in forked children, and what came of them."""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import fuzz_child
import psutil
from fuzz_child import Child, Shared, record
from mutate_pickle import MARK
from targets import Target

BATCH = 5000  # inputs of one child
_LOOK_SECONDS = 0.05  # between two looks at a child's memory
_OUR_CODE, _OURS = 99, "ours"  # how a child ends that broke outside of an input


@dataclass(frozen=True)
class Plan:
    """How to fuzz.

    Attributes:
        engine: "atheris" or "random".
        seed: of everything.
        work: folder for the inputs being read, corpora and findings; in memory where possible.
        hang_seconds: of processor time on one input are a hang; of the clock's, six times as
            many, since the machine may be busy with other things.
        progress: told of the inputs read so far of the target.
    """

    engine: str
    seed: int
    work: Path
    hang_seconds: float = 10.0
    progress: Callable[[int], None] = lambda _: None


@dataclass
class Tally:
    """What came of a target's inputs; `findings` holds a few of each kind, the counts all."""

    target: str
    inputs: int = 0
    loaded: int = 0
    refused: int = 0
    crashes: int = 0
    hangs: int = 0
    executed: int = 0
    memory: int = 0
    slowest_ms: float = 0.0
    growth_mb: float = 0.0
    seconds: float = 0.0
    findings: list[dict[str, str]] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Inputs that were neither refused nor loaded."""
        return self.crashes + self.hangs + self.executed + self.memory


def fuzz(target: Target, inputs: int, plan: Plan) -> Tally:
    """Reads so many inputs, in as many children as it takes.

    Raises:
        RuntimeError: when a child fails before its first input.
    """
    tally, began = Tally(target.name), time.monotonic()
    findings = plan.work / "findings.jsonl"
    findings.unlink(missing_ok=True)
    while tally.inputs < inputs:
        _batch(target, min(BATCH, inputs - tally.inputs), plan, tally)
    tally.seconds = round(time.monotonic() - began, 1)
    if findings.exists():
        tally.findings = [json.loads(line) for line in findings.read_text().splitlines()]
    return tally


def _batch(target: Target, count: int, plan: Plan, tally: Tally) -> None:
    now = plan.work / "now"
    shutil.rmtree(now, ignore_errors=True)
    now.mkdir(parents=True)
    (now / fuzz_child.OUTSIDE).write_bytes(b"x")
    os.environ[f"{MARK}_FILE"] = str(now / "ran")
    shared = Shared()
    pid = os.fork()
    if not pid:
        _be_child(target, count, plan, tally.inputs, shared)
    ended = _wait(pid, shared, plan, tally)
    shared.refresh()
    if shared.done < 0 or (ended and ended[0] == _OURS):
        log = (plan.work / "log").read_text(errors="replace")
        raise RuntimeError(f"fuzzing {target.name} itself failed ({ended}):\n{log}")
    for name in ("loaded", "refused", "crashes", "executed", "memory"):
        setattr(tally, name, getattr(tally, name) + getattr(shared, name))
    tally.inputs += shared.done
    tally.slowest_ms = max(tally.slowest_ms, round(shared.slowest * 1000, 1))
    tally.growth_mb = max(tally.growth_mb, round(shared.growth, 1))
    if ended:
        kind, what = ended
        names = {"hang": "hangs", "memory": "memory"}
        name = names.get(kind, "crashes")
        setattr(tally, name, getattr(tally, name) + 1)
        tally.inputs += 1
        record(plan.work, target.name, kind, what, shared.input)


def _be_child(target: Target, count: int, plan: Plan, first: int, shared: Shared) -> NoReturn:
    try:
        child = Child(target, shared, plan.work, count, plan.hang_seconds)
        if plan.engine == "atheris":
            corpus = plan.work / f"corpus-{target.name}"
            fuzz_child.guided(child.feed, target, plan.seed, first, corpus)
        else:
            fuzz_child.at_random(child.feed, target, plan.seed, first)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(_OUR_CODE)  # the last input ends the process with 0


def _wait(pid: int, shared: Shared, plan: Plan, tally: Tally) -> tuple[str, str] | None:
    """Waits for a child; what ended it, unless its last input did."""
    process = psutil.Process(pid)
    last, since, worked_before = -1, time.monotonic(), 0.0
    reason = None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(_LOOK_SECONDS)
        shared.refresh()
        growth, waits, worked = 0.0, False, 0.0
        with suppress(psutil.Error):
            growth = process.memory_info().rss / 2**20 - shared.base
            waits = process.status() not in (psutil.STATUS_RUNNING, psutil.STATUS_ZOMBIE)
            worked = sum(process.cpu_times()[:2])
        if shared.done != last:
            last, since, worked_before = shared.done, time.monotonic(), worked
            plan.progress(tally.inputs + max(0, last))
        late = last >= 0 and time.monotonic() - since > 6 * plan.hang_seconds
        if last >= 0 and growth > fuzz_child.GROWTH_MB:
            kind = "memory" if shared.reading else _OURS
            reason = kind, f"grew by {growth:.0f} MB"
        elif late and (waits or worked - worked_before > 2 * plan.hang_seconds):
            # One that works, but is late, has not had its time yet on a busy machine.
            reason = "hang", "it waits, or no alarm ends it"
        if reason:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return reason
    code = os.waitstatus_to_exitcode(status)
    if code == _OUR_CODE:
        return _OURS, "an error outside of any input"
    if code == -signal.SIGPROF:
        return "hang", f"longer than {plan.hang_seconds:g} s of work"
    if code < 0:
        log = (plan.work / "log").read_text(errors="replace")[-1500:]
        return "crash", f"{signal.Signals(-code).name} {log}"
    shared.refresh()
    if code or shared.reading:
        return "crash", f"it ended the process with {code}"
    return None
