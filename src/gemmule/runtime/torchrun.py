"""torchrun without a traceback of its own: `python -m gemmule.runtime.torchrun`, same arguments.

A rank has said why it failed; torchrun would add its log, its stack and a table. What no rank can
say, that it was killed, is one line here. The exit status is that of the first rank that failed.
"""

import logging
import signal
import sys

from gemmule.errors import GemmuleError, Interrupted

_LOGS = ("multiprocessing.api", "agent.server.api")  # of torch.distributed.elastic


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
        rank, failure = e.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"gemmule: rank {rank} was ended by {name}", file=sys.stderr)
            raise SystemExit(GemmuleError.exit_code) from None
        raise SystemExit(failure.exitcode) from None


if __name__ == "__main__":
    main()
