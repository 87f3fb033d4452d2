"""Power by models, where nothing can be measured: of a processor by its load, of memory by size.

A processor: TDP x (0.2 + 0.8 load), linear in the load (Fan, Weber and Barroso, "Power provisioning
for a warehouse-sized computer", 2007, section 3) between a fifth of its power when idle and all of
it, the ratio of the cloud providers' averages in Cloud Carbon Footprint (0.74 to 3.5 W a thread at
AWS, 0.71 to 4.26 at Google). A linear model's energy does not depend on how often it is read.

TDP: codecarbon's table by the processor's name. In a virtual machine the name tells little about
the share that it has, and the table is not used: 4 W for each hardware thread, as codecarbon does.

Memory: 0.392 W per GB (Cloud Carbon Footprint, from Crucial's and Micron's figures), of the memory
that this process may use: in a container that is not the host's.
"""

import csv
import functools
import importlib.util
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gemmule.runtime import cgroups, host, memory

IDLE_FRACTION = 0.2
WATTS_PER_THREAD = 4.0
WATTS_PER_GB = 0.392

_PROC = Path("/proc")
_MARKS = re.compile(r"\((r|tm)\)|@.*|with radeon.*", re.IGNORECASE)
_NOISE = re.compile(r"\b(cpu|processor|\d+-core|intel|amd)\b", re.IGNORECASE)


class CpuModel:
    """Energy of the processor by its load."""

    def __init__(
        self, watts: float, busy: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic, threads: float | None = None,
    ) -> None:  # fmt: skip
        """Begins now.

        Args:
            watts: power of all threads at full load.
            busy: function that returns the seconds that all threads together have been busy; None
                reads the system's.
            clock: clock in seconds.
            threads: number of threads; None: those that this process may use.
        """
        self._watts, self._clock = watts, clock
        self._busy = busy or busy_seconds
        self._threads = threads or usable_threads()
        self._began, self._busy_before = clock(), self._busy()

    def read(self) -> float:
        """Joules since the start."""
        seconds = self._clock() - self._began
        busy = min(max(0.0, self._busy() - self._busy_before), seconds * self._threads)
        idle = IDLE_FRACTION * seconds * self._watts
        return idle + (1 - IDLE_FRACTION) * self._watts * busy / self._threads


class ConstantPower:
    """Energy of a part that draws the same power at all times."""

    def __init__(self, watts: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._watts, self._clock, self._began = watts, clock, clock()

    def read(self) -> float:
        """Joules since the start."""
        return self._watts * (self._clock() - self._began)


def cpu_watts(settings: Mapping[str, str]) -> tuple[float, str]:
    """Power of the processor at full load, watts, and how it is known.

    Args:
        settings: the user's settings of codecarbon; force_cpu_power is taken from them.
    """
    forced = _positive(settings.get("force_cpu_power"))
    threads = usable_threads()
    if forced is not None:
        return forced, f"TDP {forced:g} W from codecarbon's settings"
    about = _cpuinfo()
    tdp = None if about.virtual else tdp_of(about.name)
    if tdp is None:
        watts = WATTS_PER_THREAD * threads
        return watts, f"TDP {watts:g} W assumed, 4 W for each of {threads:g} hardware threads"
    share = min(1.0, threads / (os.cpu_count() or threads))
    part = f", {share:.0%} of it" if share < 1 else ""
    watts = tdp * about.sockets * share
    return watts, f"TDP {tdp * about.sockets:g} W in codecarbon's table{part}"


def memory_watts(settings: Mapping[str, str]) -> tuple[float, str] | None:
    """Power of the memory, watts, and how it is known; None where its size is not known."""
    forced = _positive(settings.get("force_ram_power"))
    if forced is not None:
        return forced, "from codecarbon's settings"
    size = memory.usable()
    if size is None:
        return None
    gigabytes = size / 1e9
    return WATTS_PER_GB * gigabytes, f"from its size, {gigabytes:.3g} GB"


def usable_threads() -> float:
    """The hardware threads whose time this process can use: a container's, not its host's."""
    quota = cgroups.cpu_quota()
    threads = os.cpu_count() or 1
    return threads if quota is None else min(threads, quota)


def busy_seconds() -> float:
    """Seconds that threads were busy so far: the container's, else the machine's.

    Where the system does not say, those of this process and of the ones it has waited for.
    """
    if cgroups.cpu_quota() is not None:
        used = cgroups.cpu_seconds()
        if used is not None:
            return used
    try:
        fields = (_PROC / "stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, fields[1:])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return sum(os.times()[:4])


def tdp_of(name: str) -> float | None:
    """Thermal design power of one processor by its name, watts; None when it is not known."""
    words = _normalized(name)
    return _tdp_table().get(words) if words else None


class _About:
    def __init__(self, name: str, sockets: int, virtual: bool) -> None:
        self.name, self.sockets, self.virtual = name, sockets, virtual


def _cpuinfo() -> _About:
    sockets, virtual = set(), False
    try:
        for line in (_PROC / "cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "physical id":
                sockets.add(value.strip())
            elif key.strip() == "flags":
                virtual = virtual or "hypervisor" in value.split()
    except OSError:
        pass
    return _About(host.processor(), max(1, len(sockets)), virtual)


def _normalized(name: str) -> str:
    return " ".join(_NOISE.sub(" ", _MARKS.sub(" ", name.lower())).split())


@functools.cache
def _tdp_table() -> dict[str, float]:
    """Codecarbon's table of processors, read without importing codecarbon; empty if not there."""
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or spec.origin is None:
        return {}
    table: dict[str, float] = {}
    try:
        with (Path(spec.origin).parent / "data/hardware/cpu_power.csv").open(newline="") as f:
            for row in csv.DictReader(f):
                watts = _positive(row.get("TDP"))
                if watts is not None:
                    table.setdefault(_normalized(row["Name"]), watts)
    except (OSError, KeyError):
        return {}
    return table


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None
