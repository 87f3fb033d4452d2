"""Reading a user's benchmark files; what is wrong is named by file and line."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gemmule.errors import DataError

Fields = Mapping[str, type | tuple[type, ...]]
_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object", bool: "true/false"}


def jsonl(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """Objects, one a line (.gz is unpacked); blank lines are skipped.

    Args:
        path: the file.
        fields: what each must have, and of which type.

    Raises:
        DataError: naming file and line.
        FileNotFoundError: when it is not there.
    """
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}:{number}: broken JSON ({e}): expected an object") from None
        rows.append(checked(path, number, row, fields))
    return some(path, rows)


def json_document(path: Path) -> Any:
    """A whole JSON file; errors as for `jsonl`."""
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as e:
        raise DataError(f"{path}:{e.lineno}: broken JSON ({e.msg})") from None
    except RecursionError:
        raise DataError(f"{path}: JSON nested too deeply") from None


def table(path: Path, columns: tuple[str, ...], delimiter: str = ",") -> list[dict[str, str]]:
    """Rows of a CSV or TSV file whose first row names the columns; errors as for `jsonl`.

    Args:
        path: the file.
        columns: those that must be there.
        delimiter: between them.
    """
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), delimiter=delimiter)
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
            rows.append(row)
    except csv.Error as e:
        raise DataError(f"{path}:{reader.line_num}: {e}") from None
    return some(path, rows)


def lines(path: Path) -> list[str]:
    """A text file's lines, the last empty one left out; errors as for `jsonl`."""
    return some(path, _text(path).removesuffix("\n").split("\n"))


def checked(path: Path, line: int | str, row: Any, fields: Fields) -> dict[str, Any]:
    """`row` if it is an object with these fields.

    Raises:
        DataError: naming file and line (or whatever `line` names the place by).
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


def index(path: Path, line: int | str, name: str, value: int, choices: int) -> int:
    """`value` if it is the number of a choice, counted from 0.

    Raises:
        DataError: naming file and line.
    """
    if not 0 <= value < choices:
        raise DataError(f"{path}:{line}: {name} is {value}; there are {choices} choices (from 0)")
    return value


def some(path: Path, rows: list[Any]) -> list[Any]:
    """`rows` unless there are none.

    Raises:
        DataError: for an empty file.
    """
    if not rows:
        raise DataError(f"{path}: there is nothing in it")
    return rows


def blob(path: Path) -> str:
    """The file's sum as git counts it: SHA-1 over "blob SIZE", a NUL byte and the content."""
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    digest.update(content)
    return digest.hexdigest()


def files_in(folder: Path, pattern: str) -> Iterator[Path]:
    """Files that match, by name.

    Raises:
        FileNotFoundError: when none does.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"no {pattern} in {folder}")
    yield from found


def _text(path: Path) -> str:
    content = path.read_bytes()
    try:
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except (OSError, EOFError) as e:
        raise DataError(f"{path}: cannot be unpacked ({e})") from None
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8") from None
