"""Commands that several processes run together: started by torchrun, or by --nproc."""

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from gemmule.errors import ConfigError
from gemmule.runtime import host

if TYPE_CHECKING:
    from gemmule.runtime.world import World


class Replacement(SystemExit):
    """Ends a command, which has succeeded, to go on as several processes in place of this one.

    Raised rather than done at once: whatever the command has open is closed first.

    Attributes:
        count: number of processes.
        arguments: gemmule's own.
    """

    def __init__(self, count: int, arguments: Sequence[str]) -> None:
        super().__init__(0)
        self.count, self.arguments = count, list(arguments)

    def start(self) -> NoReturn:
        """Replaces this process by torchrun."""
        # torchrun's processes leave out the current folder, too. It would set the threads of each
        # to 1, with a warning.
        threads = {"OMP_NUM_THREADS": str(max(1, host.usable_cores() // self.count))}
        environment = {**threads, **os.environ, "PYTHONSAFEPATH": "1"}
        os.execve(sys.executable, torchrun(self.count, self.arguments), environment)


def share_out(
    nproc: int | None, world: "World", check: Callable[[int], object], without: Sequence[str] = ()
) -> None:
    """Where --nproc is given, goes on as that many processes; then waits for the other ranks.

    Args:
        nproc: the option; None: this process is the only one, or one of torchrun's.
        world: the ranks.
        check: raises if that many processes would fail; a mistake is then told by one.
        without: options, each with a value, that have been done with.

    Raises:
        ConfigError: for --nproc under torchrun.
    """
    if nproc is not None and nproc > 1:
        from gemmule.runs.ledger import activity as ledger

        if world.size > 1:
            raise ConfigError("--nproc starts processes by itself: leave it out with torchrun")
        check(nproc)
        ledger.drop()  # the run is theirs
        start_processes(nproc, without)
    world.barrier()


def start_processes(count: int, without: Sequence[str] = ()) -> NoReturn:
    """Ends this command, to start `count` processes of the same command.

    Args:
        count: number of processes.
        without: options, each with a value, that have been done with.

    Raises:
        Replacement: always; the command line starts them.
    """
    raise Replacement(count, _without(["--nproc", *without], sys.argv[1:]))


def torchrun(count: int, arguments: Sequence[str]) -> list[str]:
    """The command line that runs gemmule in several processes of this machine.

    Args:
        count: number of processes.
        arguments: gemmule's own.
    """
    launcher = [sys.executable, "-P", "-m", "gemmule.runtime.torchrun", "--standalone"]
    return [*launcher, f"--nproc-per-node={count}", "-m", "gemmule", *arguments]


def _without(options: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Arguments without some options and their values."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = True
        elif argument.partition("=")[0] not in options:
            kept.append(argument)
    return kept


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


def again_with(world: "World", nproc: int | None) -> int | None:
    """The --nproc that starts as many processes again; None where there are several machines.

    Args:
        world: the ranks.
        nproc: processes that this one is to start, if it is none of several.
    """
    if world.size > world.local_size:
        return None
    return world.size if world.size > 1 else nproc or 1


def print_error(message: str) -> None:
    """Prints an error to stderr, once if the ranks that torchrun has started have the same one.

    The first rank prints its own. Another waits for that, and prints what no rank has said yet.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    first = os.environ.get("RANK", "0") == "0"
    if shared and not first and _is_printed(message):
        return
    print(f"gemmule: {message}", file=sys.stderr)
    if shared and first:
        with contextlib.suppress(RuntimeError, ValueError):
            _printed().set(_FIRST, message.encode(errors="replace"))


_FIRST = "first rank's error"
_WAIT = 10.0  # seconds for the first rank's error


def _is_printed(message: str) -> bool:
    """Whether another rank has printed a message, or what it says, or the first does so soon."""
    end = time.monotonic() + _WAIT
    with contextlib.suppress(RuntimeError, ValueError):
        store = _printed()
        while time.monotonic() < end:
            if store.check([_FIRST]):
                first = store.get(_FIRST).decode()
                reason, _, _ = first.partition("\n")
                # Its stop by a budget says more; that it failed ends with why.
                if message in first or message.endswith(f": {reason}"):
                    return True
                break
            time.sleep(0.05)
        return bool(store.add(message, 1) > 1)
    return False


def _printed() -> Any:
    """What the ranks have printed since torchrun started them last, in the store that it holds."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    place, timeout = os.environ, datetime.timedelta(seconds=_WAIT)
    store = TCPStore(place["MASTER_ADDR"], int(place["MASTER_PORT"]), timeout=timeout)
    start = f"gemmule/{place.get('TORCHELASTIC_RUN_ID')}/{place.get('TORCHELASTIC_RESTART_COUNT')}"
    return PrefixStore(start, store)
