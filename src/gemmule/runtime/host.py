"""The machine this process runs on: processor, usable cores, memory, library versions."""

import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from gemmule.runtime import cgroups, memory


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries a result depends on."""
    libraries = ("torch", "numpy", "safetensors", "sentencepiece", "tokenizers")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in libraries},
    }


def machine() -> dict[str, Any]:
    """Description of the machine: processor, usable cores, memory (GiB), system."""
    total = memory.machine()
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory_gib": None if total is None else round(total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    """Cores this process may use: those it may run on, at most those its control groups pay for.

    Of a quota of 1.5 cores two are used: one would leave a third of it unused, and the system
    takes the rest of the second one's time away.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))  # cpusets and taskset included
    else:
        cores = os.cpu_count() or 1
    quota = cgroups.cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def processor() -> str:
    """Name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
