"""torchrun without a traceback of its own: `python -m gemmule.runtime.torchrun`, same arguments.

A rank has said why it failed; torchrun would add its log, its stack and a table. What no rank can
say, that it was killed, is one line here. The exit status is that of the first rank that failed.
"""

import logging
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gemmule.errors import GemmuleError, Interrupted, RankError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_LOGS = ("multiprocessing.api", "agent.server.api")  # of torch.distributed.elastic
_TOGETHER = 10  # seconds in which ranks notice that another was killed


def main() -> None:
    """Runs torchrun with the arguments of this process."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in _LOGS:
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run.main()
    except SignalException:  # the ranks were told
        raise SystemExit(Interrupted.exit_code) from None
    except ChildFailedError as e:
        rank, failure = _first(e.failures)
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"gemmule: rank {rank} was ended by {name}", file=sys.stderr)
            raise SystemExit(GemmuleError.exit_code) from None
        raise SystemExit(failure.exitcode) from None


def _first(failures: "Mapping[int, ProcessFailure]") -> "tuple[int, ProcessFailure]":
    """The failure that the others follow from, with its rank.

    Times are whole seconds, and ranks that lose their partner end in the same one: it is the rank
    that was killed, or one that did not end as ranks do whose partner has failed. torchrun itself
    stops the others by SIGTERM, and half a minute later by SIGKILL.
    """
    first = min(failure.timestamp for failure in failures.values())

    def order(rank: int) -> tuple[bool, int, bool]:
        failure = failures[rank]
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        follows = failure.exitcode in (RankError.exit_code, -signal.SIGTERM)
        alone = not (killed and failure.timestamp - first <= _TOGETHER)
        return alone, failure.timestamp, follows

    rank = min(failures, key=order)
    return rank, failures[rank]


if __name__ == "__main__":
    main()
