"""Compressed files as blocks of bytes: gzip, Zstandard, bzip2 and xz, memory bounded."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import IO, cast

from gemmule.errors import DataError, MissingExtraError

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}
BLOCK_BYTES = 1024 * 1024
_ZSTD_INPUT = 4096  # compressed bytes at a time: 4 bytes can stand for a block of 128 KiB
_ZSTD_WINDOW = 2**31  # files made with `zstd --long=31`


def read_blocks(path: Path, compression: str | None) -> Generator[bytes]:
    """Streams a file's content in blocks of about 1 MiB.

    Args:
        path: the file.
        compression: one of `COMPRESSIONS`, or None.

    Raises:
        OSError: when it cannot be read.
        DataError: when the compressed data are damaged or end too early.
        MissingExtraError: when the format needs a package that is not installed.
    """
    if compression == ".zst":
        yield from _zstd_blocks(path)
        return
    try:
        with _opened(path, compression) as f:
            while block := f.read(BLOCK_BYTES):
                yield block
    except (EOFError, zlib.error, lzma.LZMAError) as e:
        raise _damaged(path, e) from None
    except OSError as e:
        if e.errno is not None:  # the system's, not the decompressor's
            raise
        raise _damaged(path, e) from None


def actual(path: Path, named: str | None) -> str | None:
    """The compression that a file has, by its content where that is one of `COMPRESSIONS`.

    Args:
        path: the file.
        named: the compression by its name.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as f:
        head = f.read(max(map(len, MAGIC)))
    return next((name for mark, name in MAGIC.items() if head.startswith(mark)), named)


def _opened(path: Path, compression: str | None) -> IO[bytes]:
    match compression:
        case ".gz":
            return cast(IO[bytes], gzip.open(path, "rb"))
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
    return path.open("rb")


def _zstd_blocks(path: Path) -> Generator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstandard", "data", f"reading {path.name}") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = None
    parts: list[bytes] = []
    size = 0
    try:
        with path.open("rb") as f:
            while data := f.read(_ZSTD_INPUT):
                while data:
                    frame = frame or decompressor.decompressobj()
                    parts.append(frame.decompress(data))
                    size += len(parts[-1])
                    data = frame.unused_data
                    if frame.eof:
                        frame = None
                if size >= BLOCK_BYTES:
                    yield b"".join(parts)
                    parts, size = [], 0
    except (zstandard.ZstdError, MemoryError) as e:
        raise _damaged(path, e) from None
    if frame is not None:
        raise _damaged(path, "the last frame has no end")
    if size:
        yield b"".join(parts)


def _damaged(path: Path, reason: object) -> DataError:
    return DataError(f"{path} is damaged or cut short ({reason}): fetch it again")
