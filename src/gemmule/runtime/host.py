"""The machine this process runs on: processor, usable cores, memory, library versions."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from gemmule.runtime import memory


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
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": None if total is None else round(total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
