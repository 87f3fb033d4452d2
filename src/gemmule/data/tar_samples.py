"""Streams the samples of a tar archive, as WebDataset lays them out; nothing is unpacked.

A sample is the run of members that share a name up to the first dot: 000017.txt and 000017.json.
Only .txt and .json are read. A member's name only groups and says its type: it is never a path.
"""

import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from gemmule import text_encoding
from gemmule.data import json_values
from gemmule.data.read_log import ReadLog
from gemmule.data.unusable import MAX_RECORD_BYTES, MalformedError, Unusable
from gemmule.text_encoding import NotTextError

_READ = {"txt", "json"}
_LARGEST_HEADER = 16 * 1024 * 1024  # bytes between two members: long names, extended headers
_CHUNK = 1024 * 1024


def rows(
    blocks: Iterable[bytes], key: str, field: str | None, log: ReadLog
) -> Iterator[dict[str, Any] | Unusable]:
    """Streams a record for each sample: the fields of its .json, and its .txt as the text.

    Args:
        blocks: the archive's bytes, decompressed.
        key: the archive's name in the corpus.
        field: name under which a record has the text of the .txt; None: "text".
        log: receives members that are not read, by type.

    Raises:
        MalformedError: when the archive is damaged or ends too early.
        DataError: when the compressed data are damaged.
    """
    stream = _Stream(blocks)
    name, parts = None, dict[str, bytes | None]()
    try:
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as archive:
            while (member := _next(archive, stream)) is not None:
                sample, _, kind = member.name.rpartition("/")[2].partition(".")
                sample = f"{member.name.rpartition('/')[0]}/{sample}"
                if sample != name:
                    if parts:
                        yield _row(parts, field or "text")
                    name, parts = sample, {}
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        log.leave_out("tar members that are no files", key)
                elif kind.lower() in _READ:
                    parts[kind.lower()] = _content(archive, member, keep=True)
                else:
                    _content(archive, member, keep=False)
                    log.leave_out("tar members of another type", key)
            offset = archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as e:
        raise MalformedError(str(e) or type(e).__name__) from None
    if parts:
        yield _row(parts, field or "text")
    stream.drain()
    if stream.last_byte >= offset:
        raise MalformedError(f"the member at byte {offset:,} has a damaged header")
    if stream.position <= offset:
        raise MalformedError("it ends without the mark of its end, so that members may be missing")


def _next(archive: tarfile.TarFile, stream: "_Stream") -> tarfile.TarInfo | None:
    """The next member; the archive forgets those before, which it would keep in memory."""
    archive.members.clear()  # type: ignore[attr-defined]
    stream.allowance = _LARGEST_HEADER
    member = archive.next()
    stream.allowance = None
    return member


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, keep: bool) -> bytes | None:
    """A member's bytes; None if they are not kept, or are more than a record may have."""
    keep = keep and member.size <= MAX_RECORD_BYTES
    content = archive.extractfile(member)
    assert content is not None  # it is a regular file
    if keep:
        return content.read()
    while content.read(_CHUNK):
        pass
    return None


def _row(parts: dict[str, bytes | None], field: str) -> dict[str, Any] | Unusable:
    if None in parts.values():
        return Unusable.TOO_LARGE
    row: Any = {}
    if "json" in parts:
        row = json_values.parsed_line(cast(bytes, parts["json"]))
        if not isinstance(row, dict):
            return Unusable.MALFORMED
    if "txt" in parts:
        try:
            row[field] = text_encoding.decode(cast(bytes, parts["txt"]))[0]
        except NotTextError:
            return Unusable.NOT_UTF8
    return cast(dict[str, Any], row)


class _Stream:
    """Blocks of bytes as a file that is read once.

    Attributes:
        position: number of bytes read.
        last_byte: position of the last byte that is not zero; -1 if there is none.
        allowance: bytes that may be read until it is set again; None: any number.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._rest = b""
        self.position = 0
        self.last_byte = -1
        self.allowance: int | None = _LARGEST_HEADER  # opening an archive reads its first header

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        parts, missing = [], size
        while missing and (self._rest or self._fill()):
            part, self._rest = self._rest[:missing], self._rest[missing:]
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        if self.allowance is not None:
            self.allowance -= len(data)
            if self.allowance < 0:
                raise ValueError(f"a header is larger than {_LARGEST_HEADER >> 20} MB")
        if kept := len(data.rstrip(b"\0")):
            self.last_byte = self.position + kept - 1
        self.position += len(data)
        return data

    def drain(self) -> None:
        """Reads what is left."""
        while self.read(_CHUNK):
            pass

    def _fill(self) -> bool:
        self._rest = next(self._blocks, b"")
        return bool(self._rest)
