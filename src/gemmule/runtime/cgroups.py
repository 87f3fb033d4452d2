"""Limits of the control groups that this process belongs to, of versions 1 and 2.

/proc/self/mountinfo says where the groups are mounted, and which of them the mount begins with;
/proc/self/cgroup says which group the process is in. A limit of a group above counts as well. In a
container the path may be the host's, or lead out of what is mounted ("/../other"): then the groups
that can be seen count.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_MOUNT = Path("/sys/fs/cgroup")  # where /proc/self/mountinfo cannot be read


@dataclass(frozen=True)
class MemoryLimit:
    """A limit of memory, in bytes, and how much of it is used, droppable file pages left out."""

    limit: int
    used: int


def memory_limits() -> Iterator[MemoryLimit]:
    """Limits of memory: those that kill, and memory.high, past which a group is slowed down."""
    for folder in _groups(""):
        # Cached file pages that were not used lately are dropped before anything runs out.
        statistics = _statistics(folder / "memory.stat")
        used = (_number(folder / "memory.current") or 0) - statistics.get("inactive_file", 0)
        for name in ("memory.max", "memory.high"):
            limit = _number(folder / name)
            if limit is not None:
                yield MemoryLimit(limit, max(0, used))
    for folder in _groups("memory"):
        statistics = _statistics(folder / "memory.stat")
        used = _number(folder / "memory.usage_in_bytes") or 0
        used -= statistics.get("total_inactive_file", 0)
        # The latter is the lowest of all groups above, those that cannot be seen included.
        limits = (
            _number(folder / "memory.limit_in_bytes"), statistics.get("hierarchical_memory_limit"),
        )  # fmt: skip
        for limit in limits:
            if limit is not None:
                yield MemoryLimit(limit, max(0, used))


def cpu_quota() -> float | None:
    """The number of cores whose time the groups may use, as in 1.5; None: no limit.

    The cores of a cpuset are not counted here: the system keeps them in the affinity of a process.
    """
    quotas = []
    for folder in _groups(""):
        parts = "".join(_lines(folder / "cpu.max")).split()
        if len(parts) == 2 and all(part.isdigit() for part in parts):
            quotas.append((int(parts[0]), int(parts[1])))
    for folder in _groups("cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None:
            quotas.append((quota, period))
    return min((quota / period for quota, period in quotas if quota and period), default=None)


def cpu_seconds() -> float | None:
    """Processor time that the process's group has used, of all threads; None if it is not told."""
    for folder in _groups("")[:1]:
        microseconds = _statistics(folder / "cpu.stat").get("usage_usec")
        if microseconds is not None:
            return microseconds / 1e6
    for folder in _groups("cpuacct")[:1]:
        nanoseconds = _number(folder / "cpuacct.usage")
        if nanoseconds is not None:
            return nanoseconds / 1e9
    return None


def _groups(controller: str) -> list[Path]:
    """Folders of the process's group and of those above it; version 2 is the controller ""."""
    path = _path(controller)
    folders: dict[Path, None] = {}
    for root, mount in _mounts(controller):
        inside = posixpath.relpath(path, root) if path is not None else "."
        folder = mount if inside.startswith("..") else mount / inside
        while folder != mount:
            folders[folder] = None
            folder = folder.parent
        folders[mount] = None
    return list(folders)


def _path(controller: str) -> str | None:
    """The process's group as /proc/self/cgroup has it."""
    for line in _lines(_PROC / "self" / "cgroup"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if (number == "0" and not names) if not controller else controller in names.split(","):
            return posixpath.normpath("/" + path.lstrip("/")) if ".." not in path else "/"
    return None


def _mounts(controller: str) -> list[tuple[str, Path]]:
    """The group at which each mount of a hierarchy begins, and where it is mounted."""
    lines = _lines(_PROC / "self" / "mountinfo")
    if not lines:
        return [("/", _MOUNT / controller)]
    mounts = []
    for line in lines:
        fields, _, system = line.partition(" - ")
        kind, *rest = system.split(" ")
        options = rest[-1].split(",") if rest else []
        if kind == "cgroup2" if not controller else kind == "cgroup" and controller in options:
            _, _, _, root, mount, *_ = [*map(_unescaped, fields.split(" ")), *[""] * 5]
            if mount:
                mounts.append((root, Path(mount)))
    return mounts


def _unescaped(text: str) -> str:
    r"""A path of mountinfo, where a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _statistics(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    """The number that a file holds; None for "max", -1 and a file that is not there."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
