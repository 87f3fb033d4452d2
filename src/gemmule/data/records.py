"""Reads files with one text per record: JSON lines (plain, gzip, Zstandard) and Parquet."""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemmule.errors import DataError, MissingExtraError

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".parquet")
_BLOCK_BYTES = 1024 * 1024


def is_records(path: Path) -> bool:
    """Whether a file holds records, judged by its name."""
    return path.name.lower().endswith(RECORD_SUFFIXES)


def read_records(path: Path, field: str, dropped: Counter[str]) -> Iterator[str]:
    """Streams the text of each record.

    Args:
        path: a file for which `is_records` is true.
        field: the JSON field or Parquet column that holds the text.
        dropped: receives the number of unusable records, by reason.

    Raises:
        DataError: when the file is damaged, or no record has the field.
        MissingExtraError: when the format needs a package that is not installed.
    """
    rows = _parquet_rows(path, field) if path.suffix.lower() == ".parquet" else _json_rows(path)
    used = 0
    fields: dict[str, None] = {}  # an ordered set
    without = Counter[str]()
    try:
        for row in rows:
            if not isinstance(row, dict):
                without[
                    "malformed JSON line" if row is None else "JSON line that is not an object"
                ] += 1
            elif field not in row:
                fields |= dict.fromkeys(row)
                without[f"no field {field!r}"] += 1
            elif not isinstance(row[field], str):
                without[f"field {field!r} is not text"] += 1
            else:
                used += 1
                yield row[field]
    except PermissionError:
        without["unreadable (permission denied)"] += 1
    if not used and fields:
        raise DataError(
            f"{path} has no field {field!r}; its fields are {', '.join(fields)}: name the one "
            "that holds the text"
        )
    dropped.update(without)


def _json_rows(path: Path) -> Iterator[Any]:
    """Yields the value of each line, or None if the line is not JSON."""
    try:
        for line in _lines(path):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{path} is damaged or cut short ({e}): fetch it again") from None


def _lines(path: Path) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    if suffix == ".zst":
        yield from _zstd_lines(path)
        return
    with gzip.open(path, "rb") if suffix == ".gz" else path.open("rb") as f:
        yield from f


def _zstd_lines(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtraError("zstandard", "data", f"reading {path.name}") from None
    decompressor = zstandard.ZstdDecompressor()
    rest = b""
    frame = None
    try:
        with path.open("rb") as f:
            while block := f.read(_BLOCK_BYTES):
                while block:
                    frame = frame or decompressor.decompressobj()
                    *lines, rest = (rest + frame.decompress(block)).split(b"\n")
                    yield from lines
                    block = frame.unused_data
                    if frame.eof:
                        frame = None
    except zstandard.ZstdError as e:
        raise EOFError(e) from None
    if frame is not None:
        raise EOFError("the last frame has no end")
    yield rest


def _parquet_rows(path: Path, field: str) -> Iterator[Any]:
    try:
        import pyarrow.lib
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "data", f"reading {path.name}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as table:  # type: ignore[no-untyped-call]
            names = table.schema_arrow.names
            if field not in names:
                yield dict.fromkeys(names)
                return
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                yield from batch.to_pylist()
    except pyarrow.lib.ArrowException as e:
        raise DataError(f"{path} is not a readable Parquet file ({e}): fetch it again") from None
