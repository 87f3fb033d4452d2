"""Reads files with one text per record: JSON, CSV, Parquet and Arrow."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from gemmule import text_encoding
from gemmule.data import arrow_rows, csv_rows, json_values, tar_samples, text_blocks
from gemmule.data.compression import BLOCK_BYTES
from gemmule.data.file_kinds import (
    ARROW,
    CSV,
    GENERAL_KINDS,
    JSON_LINES,
    PARQUET,
    TAR,
    TSV,
    CorpusFile,
)
from gemmule.data.read_log import ReadLog, printable
from gemmule.data.unusable import MalformedError, Unusable
from gemmule.errors import DataError
from gemmule.text_encoding import NotTextError

_FIELDS_SHOWN = 20
_MISSING = object()


def read_records(file: CorpusFile, field: str, log: ReadLog) -> Iterator[str]:
    """Streams the text of each record.

    Args:
        file: a file of records.
        field: the field or column that holds the text, or a path to it: "meta.body" is field
            body of the object in field meta. A list on the way gives a text for each element.
        log: receives what is left out.

    Raises:
        OSError: when the file cannot be read.
        DataError: when it is damaged, or no record has the field. A file of `GENERAL_KINDS` that
            the user did not name is left out instead.
        MissingExtraError: when the format needs a package that is not installed.
    """
    return (text for text, _ in read_licensed(file, field, None, log))


def read_licensed(
    file: CorpusFile, field: str, license_field: str | None, log: ReadLog
) -> Iterator[tuple[str, str | None]]:
    """Streams the text of each record with its license, which None stands for where it has none.

    Arguments and errors are those of `read_records`; a license is text, or a list of texts.
    """
    used = 0
    unused = _Unused(file, field)
    required = file.named or file.kind not in GENERAL_KINDS
    others = () if license_field is None else (license_field,)
    try:
        for row in _rows(file, field, log, *others):
            text = row.get(field) if isinstance(row, dict) else None
            licence = None if license_field is None else _licence(row, license_field)
            if isinstance(text, str):  # nearly always
                used += 1
                yield text, licence
                continue
            for value in _texts(row, field):
                if isinstance(value, str):
                    used += 1
                    yield value, licence
                else:
                    unused.count(row, value)
    except NotTextError as e:
        unused.reasons[str(e)] += 1
    except MalformedError as e:
        if used or required:
            raise DataError(_malformed(file, e)) from None
        log.leave_out(f"not valid {file.kind}", file.key)
        return
    log.records += used
    if not used and unused.fields:
        if required:
            raise DataError(no_field(str(file.path), field, unused.fields))
        log.lack_field(field, file.key, unused.fields)
        return
    for reason, count in unused.reasons.items():
        log.leave_out(reason, file.key, count)


def read_rows(file: CorpusFile, log: ReadLog) -> Iterator[dict[str, Any]]:
    """Streams whole records, with all their fields.

    Args:
        file: a file of records.
        log: receives what is left out.

    Raises:
        OSError: when the file cannot be read.
        DataError: when it is damaged.
        MissingExtraError: when the format needs a package that is not installed.
    """
    unused = _Unused(file, None)
    try:
        for row in _rows(file, None, log):
            if isinstance(row, dict):
                log.records += 1
                yield row
            else:
                unused.count(row, row)
    except NotTextError as e:
        unused.reasons[str(e)] += 1
    except MalformedError as e:
        raise DataError(_malformed(file, e)) from None
    for reason, count in unused.reasons.items():
        log.leave_out(reason, file.key, count)


def _malformed(file: CorpusFile, error: MalformedError) -> str:
    return (
        f"{file.path} is not valid {file.kind} ({error}): correct it, or fetch it again if it is "
        "cut short"
    )


def no_field(where: str, field: str, fields: Iterable[str]) -> str:
    """The message that lists the fields there are."""
    names = ", ".join(map(printable, itertools.islice(fields, _FIELDS_SHOWN)))
    return (
        f"{where} has no field {field!r}; its fields are {names}: name the one that holds the text "
        "with --field, or with field in a recipe"
    )


class _Unused:
    """Counts the records of a file that give no text, by reason."""

    def __init__(self, file: CorpusFile, field: str | None) -> None:
        self.reasons = Counter[str]()
        self.fields: dict[str, None] = {}  # an ordered set, of records without the field
        self._field = field
        self._what = "JSON line" if file.kind == JSON_LINES else "JSON value"

    def count(self, row: Any, value: Any) -> None:
        """Counts a value that is not text, and the row that it is from."""
        if isinstance(value, Unusable):
            reason = str(value.value)
        elif not isinstance(row, dict):
            reason = f"{self._what} that is not an object"
        elif value is _MISSING:
            reason = f"no field {self._field!r}"
            if len(self.fields) < _FIELDS_SHOWN:
                self.fields |= dict.fromkeys(map(str, row))
        elif isinstance(value, list | dict):
            what = "a list" if isinstance(value, list) else "an object"
            reason = f"field {self._field!r} is {what}, not text"
        else:
            reason = f"field {self._field!r} is not text"
        self.reasons[reason] += 1


def _texts(value: Any, field: str) -> Iterator[Any]:
    """What is at a path of fields; `_MISSING` where there is nothing. Bytes are decoded."""
    if not isinstance(value, dict):
        yield value if isinstance(value, Unusable) else _MISSING
        return
    if field in value:
        yield _decoded(value[field])
        return
    name = arrow_rows.column_of(field, value)
    if name is None:
        yield _MISSING
        return
    inner, rest = value[name], field[len(name) + 1 :]
    for element in inner if isinstance(inner, list) else [inner]:
        yield from _texts(element, rest)


def _decoded(value: Any) -> Any:
    """Columns of binary data may hold text: older programs write it without saying so."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return Unusable.NOT_UTF8


def _licence(row: Any, field: str) -> str | None:
    """The license in a field of a record."""
    values = [
        part
        for value in _texts(row, field)
        for part in (value if isinstance(value, list) else [value])
        if isinstance(part, str) and part.strip()
    ]
    return ", ".join(" ".join(value.split()) for value in values) or None


def _rows(file: CorpusFile, field: str | None, log: ReadLog, *others: str) -> Iterator[Any]:
    """Rows as dictionaries; anything else cannot be used."""
    if file.kind in (PARQUET, ARROW):
        return arrow_rows.rows(file.path, file.kind, field, *others)
    if file.kind in (CSV, TSV):
        delimiter = "\t" if file.kind == TSV else None
        return csv_rows.rows(text_blocks.decoded_stream(file, log), delimiter, field)
    if file.kind == TAR:
        return tar_samples.rows(text_blocks.blocks(file), file.key, field, log)
    return _json_rows(file, log)


def _json_rows(file: CorpusFile, log: ReadLog) -> Iterator[Any]:
    stream = text_blocks.blocks(file)
    head = next(stream, b"")
    if json.detect_encoding(head[:4]).startswith("utf-8"):
        if _is_by_line(head.decode("utf-8-sig", "replace"), file.kind):
            return _line_rows(file, itertools.chain([head], stream), log)
        return json_values.values(text_blocks.decoded_stream(file, log))
    text = text_blocks.decoded_stream(file, log)
    first = next(text, "")
    text = itertools.chain([first], text)
    if _is_by_line(first, file.kind):
        return _line_rows(file, (part.encode(errors="surrogatepass") for part in text), log)
    return json_values.values(text)


def _is_by_line(head: str, kind: str) -> bool:
    """Whether a file that begins with `head` has one value in each line."""
    head = head.lstrip(" \t\r\n")
    first, newline, _ = head.partition("\n")
    if not newline and len(head.encode(errors="replace")) >= BLOCK_BYTES // 2:
        return kind == JSON_LINES and not first.startswith("[")  # the first line goes on
    value = json_values.parsed_line(first)
    if isinstance(value, list):
        return not any(isinstance(element, dict) for element in value)
    if value is not Unusable.MALFORMED:
        return True
    return kind == JSON_LINES and not head.startswith("[") and not json_values.begins_whole(head)


def _line_rows(file: CorpusFile, stream: Iterable[bytes], log: ReadLog) -> Iterator[Any]:
    codec: str | None = None  # of lines that are not UTF-8; None until one is met
    for line in json_values.lines(stream):
        if isinstance(line, Unusable):
            yield line
        elif line.strip():
            row = json_values.parsed_line(line)
            if row is Unusable.MALFORMED and not _is_utf8(line):
                codec = codec or text_blocks.fallback(file, log)
                if codec == text_encoding.WINDOWS:
                    row = json_values.parsed_line(line.decode(codec))
            yield row


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
