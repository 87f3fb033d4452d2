"""The one reader of memory, over files laid out as Linux has them."""

import resource
from pathlib import Path

import pytest
import torch

from gemmule.runtime import cgroups, memory

GIB = 2**30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(cgroups, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(cgroups, "_MOUNT", tmp_path / "cgroup")
    write(tmp_path, "proc/meminfo", f"MemTotal: {8 * GIB // 1024} kB\nMemAvailable: 5242880 kB\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_this_machine() -> None:
    machine, usable, available = memory.machine(), memory.usable(), memory.available()
    assert machine is not None
    assert usable is not None
    assert available is not None
    assert 0 < available <= usable <= machine
    held = bytearray(64 * 2**20)
    assert memory.peak() >= len(held)
    assert memory.peak() <= machine


def test_without_a_control_group(system: Path) -> None:
    assert memory.available() == 5 * GIB
    assert memory.usable() == memory.machine()


def test_the_tightest_control_group_counts(system: Path) -> None:
    write(system, "proc/self/cgroup", "0::/job/step\n")
    write(system, "cgroup/memory.max", "max\n")
    write(system, "cgroup/job/memory.max", f"{4 * GIB}\n")
    write(system, "cgroup/job/memory.current", f"{3 * GIB}\n")
    write(system, "cgroup/job/step/memory.max", "max\n")
    assert memory.usable() == 4 * GIB
    assert memory.available() == GIB
    # File pages that nothing used lately give way.
    write(system, "cgroup/job/memory.stat", f"anon 5\ninactive_file {2 * GIB}\n")
    assert memory.available() == 3 * GIB
    write(system, "cgroup/job/memory.current", f"{7 * GIB}\n")  # a limit that was lowered
    assert memory.available() == 0


def test_the_first_version_of_control_groups(system: Path) -> None:
    write(system, "cgroup/memory/memory.limit_in_bytes", str(2 * GIB))
    write(system, "cgroup/memory/memory.usage_in_bytes", str(GIB))
    assert memory.usable() == 2 * GIB
    assert memory.available() == GIB


def test_limits_of_the_process(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_AS: 3 * GIB, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(memory.resource, "getrlimit", lambda name: (limits[name], 0))
    write(system, "proc/self/status", "VmSize:\t1048576 kB\nVmData:\t524288 kB\n")
    assert memory.usable() == 3 * GIB
    assert memory.available() == 2 * GIB
    limits[resource.RLIMIT_DATA] = GIB
    assert memory.available() == GIB // 2


def test_a_system_that_says_nothing(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (system / "proc" / "meminfo").unlink()

    def unknown(_: str) -> int:
        raise ValueError

    monkeypatch.setattr(memory.os, "sysconf", unknown)
    assert memory.machine() is None
    assert memory.usable() is None
    assert memory.available() is None
    in_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert memory.peak() in (in_kib, in_kib * 1024)


def test_a_gpu_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mem_get_info(device: object) -> tuple[int, int]:
        asked.append(str(device))
        return 10 * GIB, 80 * GIB

    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    assert memory.available(torch.device("cuda", 1)) == 12 * GIB
    assert memory.available("cuda") == 12 * GIB
    assert asked == ["cuda:1", "cuda"]
