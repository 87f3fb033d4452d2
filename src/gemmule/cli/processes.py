"""Commands that several processes run together: started by torchrun, or by --nproc."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NoReturn

from gemmule.runtime import host

if TYPE_CHECKING:
    from gemmule.runtime.world import World


def start_processes(count: int) -> NoReturn:
    """Replaces this process by torchrun, which starts `count` processes of the same command."""
    # torchrun would set it to 1, with a warning.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, host.usable_cores() // count)))
    os.execv(sys.executable, torchrun(count, sys.argv[1:]))


def torchrun(count: int, arguments: Sequence[str]) -> list[str]:
    """The command line that runs gemmule in several processes of this machine.

    Args:
        count: number of processes.
        arguments: gemmule's own, --nproc among them.
    """
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--nproc="):
            skip = False
        elif argument == "--nproc":
            skip = True
        else:
            kept.append(argument)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={count}", "-m", "gemmule", *kept]


@contextlib.contextmanager
def ranks(device: Literal["auto", "cpu", "cuda"]) -> Iterator["World"]:
    """The world of the processes that run this command; only the first one prints messages."""
    from gemmule.console import console
    from gemmule.runtime.world import World

    with World.from_env(device) as world:
        before, console.quiet = console.quiet, console.quiet or not world.first
        try:
            yield world
        finally:
            console.quiet = before
