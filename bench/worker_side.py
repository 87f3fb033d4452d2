"""A worker's side of the harness. It imports nothing of ours, so that any Python can run it."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Reply = dict[str, Any]
Handler = Callable[[Mapping[str, Any]], Reply]


def serve(build: Callable[[], Handler]) -> None:
    """A worker's whole life: builds its contestant and answers requests until input ends."""
    # What libraries print must not mix with answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    handle = build()
    fell_idle = None
    for line in sys.stdin:
        idle_cpu = time.process_time() - fell_idle if fell_idle is not None else 0.0
        reply = handle(json.loads(line))
        answers.write(json.dumps({**reply, "idle_cpu_seconds": idle_cpu}) + "\n")
        fell_idle = time.process_time()
        answers.flush()


def peak_mb() -> float:
    """The most memory this process has had in use (resident), MB of 1e6 bytes."""
    # getrusage's figure outlives exec: a worker would show its parent's peak where that is larger.
    try:
        with open("/proc/self/status") as f:  # noqa: PTH123 (no pathlib at a worker's start)
            sizes = [line.split()[1] for line in f if line.startswith("VmHWM:")]
        return int(sizes[0]) * 1024 / 1e6
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
