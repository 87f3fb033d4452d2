"""Writes weights tensor by tensor into files with a precomputed layout.

A format's writer lays out each file: its header, and the place of every tensor. `write` then
streams the tensors in. So at most one chunk of a tensor is in memory, the same few lines write
every format, and an interrupted conversion continues with the first tensor that is not known to be
on disk.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemmule import files
from gemmule.errors import CheckpointError

SYNC_BYTES = 2**28  # bytes written between two updates of the progress note

Bytes = bytes | memoryview
Advance = Callable[[int], None]  # receives the number of bytes written since the last call


@dataclass(frozen=True)
class Place:
    """The place of one tensor in a file.

    Attributes:
        offset: bytes from the start of the file.
        nbytes: size in bytes.
        data: yields the bytes in chunks; called once, when the tensor is written.
    """

    offset: int
    nbytes: int
    data: Callable[[], Iterable[Bytes]]


@dataclass(frozen=True)
class FileLayout:
    """The layout of a file.

    Attributes:
        name: file name in the export's folder.
        size: final size in bytes.
        parts: (offset, content) of everything but the tensors (headers, indexes); small.
        places: the tensors, in the order of writing.
    """

    name: str
    size: int
    parts: Sequence[tuple[int, bytes]]
    places: Sequence[Place]


def write(
    layouts: Sequence[FileLayout],
    folder: Path,
    advance: Advance = lambda _: None,
    note: Path | None = None,
) -> None:
    """Writes files into `folder`, continuing where an earlier call was interrupted.

    Args:
        layouts: the files.
        folder: an existing folder.
        advance: called with the size of every chunk, tensors of an earlier call included.
        note: file that records the progress; None: always start from the beginning. The caller
            must make sure that an existing note belongs to the same layouts and weights, and
            removes it at the end.

    Raises:
        OutputError: when a file cannot be written.
        CheckpointError: when a weight cannot be read.
    """
    done = _read_note(note) if note else {}
    with files.writing_to(folder):
        for layout in layouts:
            _write_file(layout, folder, done, note, advance)


def _write_file(
    layout: FileLayout, folder: Path, done: dict[str, int], note: Path | None, advance: Advance
) -> None:
    path, finished = folder / layout.name, done.get(layout.name, 0)
    with path.open("r+b" if finished else "w+b") as f:
        f.truncate(layout.size)
        unsynced = 0
        for i, place in enumerate(layout.places):
            if i < finished:
                advance(place.nbytes)
                continue
            f.seek(place.offset)
            for chunk in _exactly(place, layout.name):
                f.write(chunk)
                advance(len(chunk))
            unsynced += place.nbytes
            if note and unsynced >= SYNC_BYTES:
                _sync(f)
                done[layout.name], unsynced = i + 1, 0
                files.write_json(note, done)
        for offset, part in layout.parts:
            f.seek(offset)
            f.write(part)
        _sync(f)
    if note:
        done[layout.name] = len(layout.places)
        files.write_json(note, done)


def _exactly(place: Place, name: str) -> Iterator[Bytes]:
    """The chunks of a place, which must fill it exactly."""
    total = 0
    for chunk in place.data():
        total += len(chunk)
        assert total <= place.nbytes, f"{name}: a tensor is larger than its place"
        yield chunk
    assert total == place.nbytes, f"{name}: a tensor is smaller than its place"


def _sync(f: BinaryIO) -> None:
    f.flush()
    files.fsync(f.fileno())


def _read_note(note: Path) -> dict[str, int]:
    try:
        done = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise CheckpointError(
            f"{note} is damaged ({e}): remove its folder and start again"
        ) from None
    return {str(name): int(count) for name, count in done.items()}
