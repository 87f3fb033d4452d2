"""Reads zip archives from untrusted sources, which .ckpt and .npz files are.

Python's zipfile does the reading, after the checks that it leaves to its caller: a small file must
not fill the memory, and a name must mean the same member to every reader.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from gemmule.errors import CheckpointError, first_line

# zipfile reads a directory at once; this is enough for some ten thousand members, and the limit of
# any single read.
READ_BYTES = 2**20
_LOCAL_HEADER = 30  # bytes before a member's name; the last four are two lengths
_ENCRYPTED = 1


class _Guarded(io.FileIO):
    """A file that refuses large reads."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > READ_BYTES:
            raise BadZipFile(f"its directory claims {size} bytes")
        return super().read(size) or b""


@contextmanager
def opened_zip(path: Path) -> Iterator[ZipFile]:
    """Opens the archive at `path` and reads its directory.

    Raises:
        CheckpointError: when it is not a zip archive, or was cut short.
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
                f"{path} is not a readable zip archive, or was cut short ({first_line(e)}); "
                "download it again"
            ) from None
        with archive:
            yield archive


def checked_members(
    archive: ZipFile, path: Path, max_bytes: int, *, deflated: bool
) -> list[ZipInfo]:
    """The archive's members, after checks that they are safe to read.

    Args:
        archive: from `opened_zip`.
        path: its file.
        max_bytes: limit of the total unpacked size.
        deflated: whether members may be compressed.

    Raises:
        CheckpointError: for encrypted members, unknown compression, duplicate names and zip bombs.
    """
    members, size = archive.infolist(), path.stat().st_size
    allowed = {ZIP_STORED, ZIP_DEFLATED} if deflated else {ZIP_STORED}
    for member in members:
        stored = member.compress_type == ZIP_STORED
        if member.flag_bits & _ENCRYPTED or member.compress_type not in allowed:
            raise CheckpointError(
                f"{path}: {member.filename!r} is encrypted or compressed in a way that the format "
                "does not allow: write the file again with the program that made it"
            )
        if stored and member.compress_size != member.file_size:
            raise CheckpointError(f"{path}: {member.filename!r} has two sizes; the file is damaged")
    # Readers differ in which of two equal names they use, and in whether case matters.
    if len({member.filename.casefold() for member in members}) < len(members):
        raise CheckpointError(f"{path}: two members have the same name; the file is damaged")
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if packed > size or unpacked > max_bytes:
        raise CheckpointError(
            f"{path} has {size} bytes and claims to hold {packed} that unpack to {unpacked}: "
            "it is damaged, or crafted to exhaust memory"
        )
    return members


def data_start(archive: ZipFile, member: ZipInfo, path: Path) -> int:
    """The offset in the file of an uncompressed member's bytes.

    Raises:
        CheckpointError: when they are outside the file.
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
