"""Zip archives of unknown origin, which .ckpt and .npz files are.

Python's zipfile reads them, after the checks it leaves to its caller: a short file must not fill
the memory, and a name must mean one member whoever looks it up.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from gemmule.errors import CheckpointError, first_line

# zipfile reads a directory at once: this is some ten thousand members, and all that is ever read
# in one piece.
READ_BYTES = 2**20
_LOCAL_HEADER = 30  # bytes before a member's name; the last four hold two lengths
_ENCRYPTED = 1


class _Guarded(io.FileIO):
    """A file that is never read in large pieces."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > READ_BYTES:
            raise BadZipFile(f"its directory claims {size} bytes")
        return super().read(size) or b""


@contextmanager
def opened_zip(path: Path) -> Iterator[ZipFile]:
    """The archive at `path`, its directory read.

    Raises:
        CheckpointError: when it is none, or was cut short.
    """
    try:
        file = _Guarded(path)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror}") from None
    with file:
        try:
            archive = ZipFile(file)
        except Exception as e:  # a damaged directory can break zipfile in any way
            raise CheckpointError(
                f"{path} is no readable zip archive, or was cut short ({first_line(e)}); "
                "download it again"
            ) from None
        with archive:
            yield archive


def checked_members(archive: ZipFile, path: Path, most: int, *, deflated: bool) -> list[ZipInfo]:
    """The archive's members, none of which lies about what reading it takes.

    Args:
        archive: from `opened_zip`.
        path: its file.
        most: bytes all members together may have, unpacked.
        deflated: whether members may be compressed.

    Raises:
        CheckpointError: for encrypted or oddly compressed members, doubled names and zip bombs.
    """
    members, size = archive.infolist(), path.stat().st_size
    allowed = {ZIP_STORED, ZIP_DEFLATED} if deflated else {ZIP_STORED}
    for member in members:
        stored = member.compress_type == ZIP_STORED
        if member.flag_bits & _ENCRYPTED or member.compress_type not in allowed:
            raise CheckpointError(
                f"{path}: {member.filename!r} is encrypted or compressed in a way that the format "
                "does not have: write the file anew with the program it comes from"
            )
        if stored and member.compress_size != member.file_size:
            raise CheckpointError(f"{path}: {member.filename!r} has two sizes; the file is damaged")
    # Readers differ in which of two equal names they take, and in whether case matters.
    if len({member.filename.casefold() for member in members}) < len(members):
        raise CheckpointError(f"{path}: two members have one name; the file is damaged")
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if packed > size or unpacked > most:
        raise CheckpointError(
            f"{path} has {size} bytes and claims to hold {packed} that unpack to {unpacked}: "
            "it is damaged, or made to fill the memory"
        )
    return members


def data_start(archive: ZipFile, member: ZipInfo, path: Path) -> int:
    """Where in the file a stored member's own bytes begin.

    Raises:
        CheckpointError: when they do not lie in the file.
    """
    file, at = archive.fp, member.header_offset
    assert file is not None
    size = path.stat().st_size
    if 0 <= at <= size - _LOCAL_HEADER:
        file.seek(at)
        header = file.read(_LOCAL_HEADER)
        lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:], "little")
        start = at + _LOCAL_HEADER + sum(lengths)
        if header[:4] == b"PK\3\4" and start + member.file_size <= size:
            return start
    raise CheckpointError(f"{path}: {member.filename!r} lies outside the file; download it again")
