"""How torch's threads wait for each other. It has to be said before torch is imported."""

import os

# With GNU's OpenMP, which torch brings on Linux, a thread that has done its part spins 300,000
# times, some milliseconds, before it sleeps. When another program is busy, a spinning thread keeps
# the core that the one it waits for could use. Some ten microseconds of spinning cost next to
# nothing alone, and training next to a busy process is 1.4 times as fast (bench/busy_cores.py).
_SPINS = "1000"
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Lets the threads of this process and its children sleep soon, unless the user has decided."""
    if not any(name in os.environ for name in SETTINGS):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
