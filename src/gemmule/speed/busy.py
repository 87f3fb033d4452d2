"""Other processes that keep cores busy while something is measured."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# Its input ends with the process that started it, however that one ends.
_BUSY = """
import os, sys, threading
def follow():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=follow, daemon=True).start()
print("busy", flush=True)
while True:
    pass
"""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """That many processes, each of which would use a core whole, until the block ends."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-P", "-c", _BUSY],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()  # from here on it is busy
        yield
