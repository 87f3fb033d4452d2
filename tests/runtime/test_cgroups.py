"""Limits of control groups, over files laid out as Linux has them on hosts and in containers."""

import os
from pathlib import Path

import pytest
import torch

from gemmule.runtime import cgroups, host, memory, threads

GIB = 2**30


class System:
    """A fake /proc and the hierarchies that it names, under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mounts: list[str] = ["22 27 0:21 / /proc rw,relatime - proc proc rw"]

    def mount(self, where: str, kind: str, options: str, root: str = "/") -> None:
        escaped = str(self.root / where).replace(" ", r"\040")
        self.mounts.append(f"33 31 0:29 {root} {escaped} rw shared:9 - {kind} {kind} {options}")
        self.write("proc/self/mountinfo", "\n".join(self.mounts) + "\n")

    def write(self, name: str, text: object) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(f"{text}\n")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setattr(cgroups, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    return System(tmp_path)


def limits() -> list[tuple[int, int]]:
    return [(limit.limit, limit.used) for limit in cgroups.memory_limits()]


def test_this_machine() -> None:
    assert 1 <= host.usable_cores() <= len(os.sched_getaffinity(0))
    assert all(limit.limit > 0 for limit in cgroups.memory_limits())


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 16), ("150000 100000", 2), ("200000 100000", 2), ("201000 100000", 3),
     ("50000 100000", 1), ("1000 100000", 1), ("9900000 100000", 16), ("20000 5000", 4), ("", 16)],
)  # fmt: skip
def test_a_quota_of_cores(system: System, quota: str, cores: int) -> None:
    system.mount("cgroup", "cgroup2", "rw")
    system.write("proc/self/cgroup", "0::/")
    system.write("cgroup/cpu.max", quota)
    assert host.usable_cores() == cores


def test_the_cores_of_a_cpuset(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    system.mount("cgroup", "cgroup2", "rw")
    system.write("cgroup/cpu.max", "800000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7, 9})
    assert host.usable_cores() == 3


def test_the_lowest_of_nested_groups(system: System) -> None:
    system.mount("elsewhere/with space", "cgroup2", "rw,nsdelegate")
    system.write("proc/self/cgroup", "0::/pod/container/worker")
    group = "elsewhere/with space"
    system.write(f"{group}/pod/cpu.max", "300000 100000")
    system.write(f"{group}/pod/container/cpu.max", "500000 100000")
    system.write(f"{group}/pod/container/worker/cpu.max", "max 100000")
    system.write(f"{group}/pod/memory.max", 4 * GIB)
    system.write(f"{group}/pod/memory.current", 3 * GIB)
    system.write(f"{group}/pod/container/memory.max", 6 * GIB)
    system.write(f"{group}/other/memory.max", GIB)
    assert cgroups.cpu_quota() == 3.0
    assert sorted(limits()) == [(4 * GIB, 3 * GIB), (6 * GIB, 0)]


def test_a_group_that_is_slowed_down_before_its_limit(system: System) -> None:
    system.mount("cgroup", "cgroup2", "rw")
    system.write("proc/self/cgroup", "0::/job")
    system.write("cgroup/job/memory.max", 8 * GIB)
    system.write("cgroup/job/memory.high", 6 * GIB)
    system.write("cgroup/job/memory.current", 5 * GIB)
    system.write("cgroup/job/memory.stat", f"anon 7\ninactive_file {2 * GIB}")
    assert sorted(limits()) == [(6 * GIB, 3 * GIB), (8 * GIB, 3 * GIB)]


@pytest.mark.parametrize(
    "path", ["/", "/../../system.slice/other", "/docker/4f2a", "/docker/4f2a/sub/gone"]
)
def test_in_a_container(system: System, path: str) -> None:
    """The mount begins with the container's own group; the path may be anyone's."""
    system.mount("cgroup", "cgroup2", "ro", root="/docker/4f2a" if "docker" in path else "/")
    system.write("proc/self/cgroup", f"0::{path}")
    system.write("cgroup/memory.max", 2 * GIB)
    system.write("cgroup/memory.current", GIB)
    system.write("cgroup/cpu.max", "100000 100000")
    assert limits() == [(2 * GIB, GIB)]
    assert cgroups.cpu_quota() == 1.0


def test_a_mount_of_another_group(system: System) -> None:
    system.mount("cgroup", "cgroup2", "ro", root="/kubepods/pod1")
    system.write("proc/self/cgroup", "0::/kubepods/pod1/c1")
    system.write("cgroup/c1/memory.max", GIB)
    system.write("cgroup/kubepods/pod1/c1/memory.max", 1)
    assert limits() == [(GIB, 0)]
    system.write("proc/self/cgroup", "0::/kubepods/pod2/c1")
    assert limits() == []


def test_version_1(system: System) -> None:
    system.mount("v1/cpu", "cgroup", "rw,cpu,cpuacct")
    system.mount("v1/memory", "cgroup", "rw,memory")
    system.mount("v1/unified", "cgroup2", "rw")
    system.write("proc/self/cgroup", "4:memory:/job/a\n3:cpu,cpuacct:/job\n1:name=systemd:/\n0::/")
    system.write("v1/cpu/cpu.cfs_quota_us", -1)
    system.write("v1/cpu/cpu.cfs_period_us", 100000)
    system.write("v1/cpu/job/cpu.cfs_quota_us", 250000)
    system.write("v1/cpu/job/cpu.cfs_period_us", 100000)
    system.write("v1/memory/memory.limit_in_bytes", 2**63 - 4096)  # this version's "max"
    system.write("v1/memory/job/a/memory.limit_in_bytes", 4 * GIB)
    system.write("v1/memory/job/a/memory.usage_in_bytes", 2 * GIB)
    system.write(
        "v1/memory/job/a/memory.stat",
        f"total_inactive_file {GIB}\nhierarchical_memory_limit {3 * GIB}",
    )
    assert cgroups.cpu_quota() == 2.5
    assert (4 * GIB, GIB) in limits()
    assert (3 * GIB, GIB) in limits()  # of a group above that may not be visible
    usable = memory.usable()
    assert usable is not None
    assert usable <= 3 * GIB


def test_files_with_anything_in_them(system: System) -> None:
    system.mount("cgroup", "cgroup2", "rw")
    system.mounts += ["", "short", "1 2 3 - cgroup2", "1 2 - cgroup2 cgroup2 rw"]
    system.write("proc/self/mountinfo", "\n".join(system.mounts))
    system.write("proc/self/cgroup", "0::/job\nnonsense\n0:")
    system.write("cgroup/memory.max", "many")
    system.write("cgroup/cpu.max", "100000 0")
    (system.root / "cgroup" / "memory.stat").write_bytes(b"\xff inactive_file\n")
    assert limits() == []
    assert cgroups.cpu_quota() is None


@pytest.mark.parametrize(("environment", "expected"), [({}, 2), ({"OMP_NUM_THREADS": "5"}, 5)])
def test_threads_of_torch(
    environment: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: 1.5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        threads.set_up_torch.__wrapped__()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
