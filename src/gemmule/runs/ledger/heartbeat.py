"""A killed activity leaves no line: its heartbeat does, a file that is written while it runs.

The file is next to the folder that the activity writes to, since that folder may not be there yet
or be replaced at the end. When the folder is next written to, the heartbeats of processes that are
gone become lines of its ledger. One that was closed, of an activity that ended and whose folder
was never there, becomes a line as well.
"""

import contextlib
import datetime
import os
import socket
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import CheckpointError, OutputError
from gemmule.runs.ledger.file import append
from gemmule.runs.ledger.line import Line, energy_interval, times

SECONDS = 5.0
"""Time between heartbeats: what a killed activity used after its last one is lost at most."""

_STALE_SECONDS = 600.0  # of a process on another machine, which cannot be looked at
_ENDING = ".heartbeat"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def heartbeat_of(place: Path, identifier: str) -> Path:
    """The file of an activity's heartbeat.

    Args:
        place: absolute path of the folder.
        identifier: identifier of the activity.
    """
    return place.parent / f".{place.name}.{identifier}{_ENDING}"


def write(place: Path, line: Line, *, closed: bool = False) -> bool:
    """Writes the heartbeat of an activity of this process; False where that is not possible.

    Args:
        place: folder of the activity.
        line: its line as it would be now.
        closed: whether the activity has ended, and the line is final.
    """
    if not place.parent.is_dir():
        return False
    content = {"process": _this_process(), "closed": closed, "line": line.to_json()}
    with contextlib.suppress(OSError, OutputError):
        files.write_json(heartbeat_of(place, line.id), content)
        return True
    return False


def remove(place: Path, identifier: str) -> None:
    """Removes the heartbeat of an activity, if there is one."""
    with contextlib.suppress(OSError):
        heartbeat_of(place, identifier).unlink(missing_ok=True)


def ended(place: Path) -> list[tuple[Path, Line]]:
    """The heartbeats that processes which are gone have left for a folder, as lines."""
    place = place.absolute()
    result = []
    for path in sorted(place.parent.glob(f".{_escaped(place.name)}.*{_ENDING}")):
        try:
            content = files.read_json(path)
            process, closed = dict(content["process"]), bool(content["closed"])
            line = Line.parse(content["line"], str(path))
        except (OSError, ValueError, LookupError, TypeError, CheckpointError):
            continue  # of another version, or gone meanwhile
        if closed:
            result.append((path, line))
        elif not _runs(process, path):
            result.append((path, _killed(line)))
    return result


def collect(place: Path) -> None:
    """Makes lines of the ledger of the heartbeats that were left for a folder that is there.

    Raises:
        OutputError: when the disk refuses.
    """
    if not holds_something(place):
        return
    for path, line in ended(place):
        append(place, [line])
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def holds_something(place: Path) -> bool:
    """Whether a folder, or file, is there and has a content that a ledger can be put next to.

    A folder with nothing, or with locks and unfinished work only, whose names begin with a dot,
    may still be claimed, or replaced by a rename.
    """
    if not place.is_dir():
        return place.is_file()
    return any(not entry.name.startswith(".") for entry in place.iterdir())


def _killed(line: Line) -> Line:
    """The line of an activity that was killed: the upper end has what came after the last beat."""
    if line.energy_wh is None:  # not of the processor, and so not of the whole
        return line.model_copy(update={"outcome": "killed"})
    energy = energy_interval(line.joules, line.pue, SECONDS, line.seconds)
    grid = line.grid.gco2e_per_kwh
    changes = {
        "outcome": "killed",
        "energy_wh": energy,
        "gco2e": times(energy, None if grid is None else grid / 1000),
    }
    return line.model_copy(update=changes)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "boot": _boot(), "started": _started(pid)}


def _runs(process: dict[str, Any], path: Path) -> bool:
    """Whether the process that wrote a heartbeat still runs."""
    if process.get("host") != socket.gethostname():
        with contextlib.suppress(OSError):
            age = datetime.datetime.now().timestamp() - path.stat().st_mtime
            return age < _STALE_SECONDS
        return False
    pid = process.get("pid")
    if process.get("boot") != _boot() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return bool(process.get("started") == _started(pid))


def _boot() -> str | None:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since the boot: numbers of processes come again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
