"""Other processes that keep cores busy while something is measured."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

# Ends with the process that started it, however that one ends.
_BUSY = """
import os
parent = os.getppid()
print("busy", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """That many processes, each of which would use a core whole, until the block ends."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-P", "-c", _BUSY], stdout=subprocess.PIPE)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()  # from here on it is busy
        yield
