"""ledger.jsonl: appended to a line at a time, by any number of processes, and never rewritten.

An append holds the file's lock (flock), is one write, and is synced before it counts. What a killed
process left of a line, a last line without an end, is cut off by the next append.
"""

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from gemmule import files
from gemmule.errors import CheckpointError
from gemmule.runs.layout import LEDGER, RunLayout
from gemmule.runs.ledger.line import Line


def ledger_of(place: Path) -> Path:
    """The ledger of a folder, or of a single file that a command writes."""
    if place.suffix == ".jsonl" and not place.is_dir():
        return place.with_suffix(f".{LEDGER}")
    return place / LEDGER


def place_of(path: str | Path) -> Path | None:
    """The absolute path of a folder or file that has a ledger, or of a run; None for others."""
    try:
        place = Path(path).absolute()
        there = ledger_of(place).is_file() or RunLayout(place).started
    except (OSError, ValueError):  # no path, such as the name of a model on the hub
        return None
    return place if there and str(path) else None


def read_ledger(place: Path) -> list[Line]:
    """The lines of the ledger of a folder, in order, each once; none where there is no ledger.

    Raises:
        CheckpointError: when the file cannot be read, or a line is broken.
    """
    path = ledger_of(place)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from None
    lines: dict[str, Line] = {}
    for number, text in enumerate(_whole(data).splitlines(), 1):
        try:
            value = json.loads(text)
        except ValueError:
            raise CheckpointError(f"{path}, line {number}: not JSON") from None
        line = Line.parse(value, f"{path}, line {number}")
        lines.setdefault(line.id, line)
    return [*lines.values()]


def run_of(place: Path) -> str | None:
    """Identifier of the ledger of a folder, that of its first line; None where there is none."""
    lines = read_ledger(place)
    return lines[0].run if lines else None


def own_lines(place: Path) -> list[Line]:
    """The lines of a ledger that are about its own folder, not about what that was made from."""
    lines = read_ledger(place)
    return [line for line in lines if line.run == lines[0].run]


def append(place: Path, lines: Iterable[Line]) -> None:
    """Appends lines to the ledger of a folder, except those that it has.

    Lines of this folder itself are those without a `run`: they get the ledger's identifier.

    Raises:
        OutputError: when the disk refuses.
        CheckpointError: when the ledger is broken.
    """
    path = ledger_of(place)
    with files.writing_to(path), _locked(path) as fd:
        present = read_ledger(place)
        run = present[0].run if present else uuid.uuid4().hex[:16]
        known = {line.id for line in present}
        text = ""
        for line in lines:
            if line.id not in known:
                known.add(line.id)
                about = line if line.run else line.model_copy(update={"run": run})
                text += json.dumps(about.to_json(), allow_nan=False, ensure_ascii=False) + "\n"
        if not text:
            return
        _cut_torn_line(fd)
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(fd, data) :]
        files.fsync(fd)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    new = not path.exists()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        if new:
            files.fsync_dir(path.parent)
        yield fd
    finally:
        os.close(fd)


def _cut_torn_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    if size:
        data = os.pread(fd, size, 0)
        os.ftruncate(fd, len(_whole(data)))


def _whole(data: bytes) -> bytes:
    """The lines of a file that have an end."""
    return data[: data.rfind(b"\n") + 1]
