"""Writing weights tensor by tensor into files whose layout is known beforehand.

A format's writer lays out a file (header, and where each tensor goes); `write` then streams the
tensors in. So no more than a chunk of a tensor is in memory, every format is written by the same
few lines, and a conversion that was killed goes on with the first tensor that is not known to be
on the disk.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemmule import files
from gemmule.errors import CheckpointError

SYNC_BYTES = 2**28  # written between two notes of how far it is

Bytes = bytes | memoryview
Advance = Callable[[int], None]  # takes the bytes written since the last call


@dataclass(frozen=True)
class Place:
    """Where one tensor goes.

    Attributes:
        offset: from the file's start, bytes.
        nbytes: its length.
        data: makes its bytes, in pieces; called once, when their turn comes.
    """

    offset: int
    nbytes: int
    data: Callable[[], Iterable[Bytes]]


@dataclass(frozen=True)
class FileLayout:
    """A file to be written.

    Attributes:
        name: in the export's folder.
        size: bytes, when complete.
        parts: what stands at which offset besides the tensors (headers, indexes); small.
        places: the tensors, in the order to write them.
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
    """Writes the files into `folder`, going on where an earlier call was cut off.

    Args:
        layouts: the files.
        folder: exists.
        advance: told of every byte of a tensor, those found already written included.
        note: where to keep how far it is; None: always from the beginning. The caller must make
            sure that it is of the same layouts and the same weights, and removes it in the end.

    Raises:
        OutputError: when the disk refuses.
        CheckpointError: when the source does.
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
            for piece in _exactly(place, layout.name):
                f.write(piece)
                advance(len(piece))
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
    """The place's pieces, which must fill it."""
    total = 0
    for piece in place.data():
        total += len(piece)
        assert total <= place.nbytes, f"{name}: a tensor is larger than its place"
        yield piece
    assert total == place.nbytes, f"{name}: a tensor is smaller than its place"


def _sync(f: BinaryIO) -> None:
    f.flush()
    os.fsync(f.fileno())


def _read_note(note: Path) -> dict[str, int]:
    try:
        done = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as e:
        raise CheckpointError(
            f"{note} is damaged ({e}): remove its folder and start anew"
        ) from None
    return {str(name): int(count) for name, count in done.items()}
