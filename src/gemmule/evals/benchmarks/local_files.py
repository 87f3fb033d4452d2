"""Reads a user's benchmark files; errors name file and line."""

import csv
import errno
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmule import text_encoding
from gemmule.errors import DataError

Fields = Mapping[str, type | tuple[type, ...]]
_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object", bool: "true/false"}
_LARGEST = 1 << 30  # bytes of an unpacked file; the largest known one has 4 MB


def jsonl(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Reads JSON objects, one a line (.gz is unpacked): object i is on line i + 1.

    Args:
        path: the file.
        fields: required fields and their types.

    Raises:
        DataError: naming file and line.
        FileNotFoundError: if there is no such file.
    """
    rows = []
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}:{number}: broken JSON ({e}): expected an object") from None
        _encodable(path, number, row, line)
        rows.append(checked(path, number, row, fields))
    return rows


def json_document(path: Path) -> Any:
    """Reads a JSON file; errors as for `jsonl`."""
    text = _text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as e:
        raise DataError(f"{path}:{e.lineno}: broken JSON ({e.msg})") from None
    except ValueError as e:
        raise DataError(f"{path}: broken JSON ({e})") from None
    except RecursionError:
        raise DataError(f"{path}: JSON nested too deeply") from None
    _encodable(path, "", document, text)
    return document


def entries(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Reads a JSON file that is one list of objects; errors name the entry's number."""
    document = json_document(path)
    if not isinstance(document, list):
        raise DataError(f"{path}: {type(document).__name__}; expected a list of objects")
    rows = [checked(path, f"entry {n}", row, fields) for n, row in enumerate(document, 1)]
    return not_empty(path, rows)


def table(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> list[dict[str, str]]:
    """Reads the rows of a CSV or TSV file whose first row names the columns.

    Errors as for `jsonl`.

    Args:
        path: the file.
        columns: required columns.
        delimiter: separator of columns.
    """
    return [row for _, row in numbered_table(path, columns, delimiter)]


def numbered_table(
    path: Path, columns: tuple[str, ...], delimiter: str = ","
) -> list[tuple[int, dict[str, str]]]:
    """Like `table`, with the number of the line on which each row ends."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            raise DataError(
                f"{path}:1: no column {missing[0]!r} (there are: "
                f"{', '.join(map(str, reader.fieldnames or ())) or 'none'})"
            )
        for row in reader:
            short = [c for c in columns if row[c] is None]
            if short:
                raise DataError(f"{path}:{reader.line_num}: nothing in column {short[0]!r}")
            if None in row:
                raise DataError(f"{path}:{reader.line_num}: more fields than columns")
            rows.append((reader.line_num, row))
    except csv.Error as e:
        raise DataError(f"{path}:{reader.reader.line_num}: {e}") from None
    return not_empty(path, rows)


def lines(path: Path) -> list[str]:
    """Reads the lines of a text file without empty ones at its end; errors as for `jsonl`."""
    text = _text(path).rstrip("\r\n")
    if not text.strip():
        return not_empty(path, [])
    return [line.removesuffix("\r") for line in text.split("\n")]


def checked(path: Path, line: int | str, row: Any, fields: Fields) -> dict[str, Any]:
    """Returns `row` if it is an object with these fields.

    Raises:
        DataError: naming file and `line`, a number or another description of the place.
    """
    if not isinstance(row, dict):
        raise DataError(f"{path}:{line}: {type(row).__name__}; expected an object")
    for name, kind in fields.items():
        if name not in row:
            there = ", ".join(map(str, row)) or "none"
            raise DataError(f"{path}:{line}: no field {name!r} (there are: {there})")
        value = row[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
            raise DataError(f"{path}:{line}: {name} is {value!r}; expected {wanted}")
    return row


def options(path: Path, line: int | str, name: str, value: list[Any]) -> list[str]:
    """Returns `value` if it is a list of two to 26 non-empty answers.

    Raises:
        DataError: naming file and line.
    """
    if not 2 <= len(value) <= 26 or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"{path}:{line}: {name} is {value!r}; expected a list of 2 to 26 texts")
    return value


def texts(path: Path, line: int | str, name: str, value: list[Any]) -> list[str]:
    """Returns `value` if it is a list of one or more non-empty texts.

    Raises:
        DataError: naming file and line.
    """
    if not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"{path}:{line}: {name} is {value!r}; expected a list of texts")
    return value


def index(path: Path, line: int | str, name: str, value: int, choices: int) -> int:
    """Returns `value` if it is the index of a choice, counted from 0.

    Raises:
        DataError: naming file and line.
    """
    if not 0 <= value < choices:
        raise DataError(f"{path}:{line}: {name} is {value}; there are {choices} choices (from 0)")
    return value


def same_length(first: Path, ones: list[Any], second: Path, others: list[Any]) -> None:
    """Checks that two files that correspond line by line have the same number of lines.

    Raises:
        DataError: naming both, and the first line without a counterpart.
    """
    if len(ones) != len(others):
        shorter = first if len(ones) < len(others) else second
        raise DataError(
            f"{first} has {len(ones)} lines and {second} has {len(others)}: they must agree line "
            f"by line, and {shorter} ends before line {min(len(ones), len(others)) + 1}"
        )


def not_empty(path: Path, rows: list[Any]) -> list[Any]:
    """Returns `rows` unless there are none.

    Raises:
        DataError: for an empty file.
    """
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def git_blob_sha1(path: Path) -> str:
    """The file's SHA-1 as a git blob: over "blob SIZE", a NUL byte and the content."""
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


def files_in(folder: Path, pattern: str) -> Iterator[Path]:
    """Files that match a pattern, sorted by name.

    Raises:
        FileNotFoundError: if none does.
    """
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(folder / pattern))
    yield from paths


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as e:  # a folder in its place, no permission, a broken disk
        raise DataError(f"{path} cannot be read: {e.strerror or e}") from None
    try:
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(content)) as packed:
                content = packed.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise DataError(f"{path} holds more than {_LARGEST >> 30} GiB: no benchmark does")
        return content.decode(text_encoding.marked(content) or "utf-8").removeprefix("\ufeff")
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be unpacked ({e})") from None
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not {e.encoding.upper()}") from None


def _encodable(path: Path, line: int | str, value: Any, source: str) -> None:
    """Refuses half of a surrogate pair, which JSON can escape and UTF-8 cannot encode."""
    if "\\ud" not in source and "\\uD" not in source:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        place = f"{path}:{line}" if line else f"{path}"
        raise DataError(f"{place}: half of a surrogate pair, which is not text") from None
