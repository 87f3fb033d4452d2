"""Runs code in several processes that form a world, over gloo and the loopback interface."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gemmule


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


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def rank_environment() -> dict[str, str]:
    """This process's environment, with gemmule, the tests' modules, loopback and one thread."""
    paths = [str(Path(gemmule.__file__).parent.parent), str(Path(__file__).parent)]
    return {
        **os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip


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
    shared = {
        **rank_environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), **environment,
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
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
