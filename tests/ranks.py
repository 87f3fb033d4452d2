"""Runs code in several processes that form a world, over gloo and the loopback interface."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gemmule

PATHS = [str(Path(gemmule.__file__).parent.parent), str(Path(__file__).parent)]


@dataclass(frozen=True)
class Ended:
    """What one rank left.

    Attributes:
        code: its exit status.
        out: its standard output.
        err: its standard error.
    """

    code: int
    out: str
    err: str


def run_ranks(
    arguments: list[str], size: int = 2, *, seconds: float = 120, **environment: str
) -> list[Ended]:
    """Runs `python ARGUMENTS` once per rank, with the environment that torchrun gives.

    Args:
        arguments: of the interpreter, as in ["-c", code].
        size: number of ranks.
        seconds: after which what still runs is killed, and the test fails.
        environment: further variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")]), **environment,
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        outputs = [rank.communicate(timeout=seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [Ended(r.returncode, *output) for r, output in zip(ranks, outputs, strict=True)]
