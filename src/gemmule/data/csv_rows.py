"""Streams the rows of CSV and TSV files, as spreadsheets and data frames write them."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator

from gemmule.data.unusable import MAX_RECORD_BYTES, MalformedError, Unusable

_DELIMITERS = ",;\t|"
_HEAD_CHARS = 64 * 1024
_END = "\0end"  # a row after the last one, unless a quote is still open
_EXCEL_HINT = re.compile(r'"?sep=([^"\r\n])"?\r?\n')  # a first line that Excel writes and reads


def rows(
    blocks: Iterable[str], delimiter: str | None, field: str | None
) -> Iterator[dict[str, str] | Unusable]:
    """Streams rows as columns by name; the first row names the columns.

    Args:
        blocks: the text, in blocks of any size.
        delimiter: what separates columns; None: the one of comma, semicolon, tab and bar that
            gives the header the field, or else most columns.
        field: the column that is wanted; None: all.

    Yields:
        Rows, or `Unusable.WRONG_LENGTH`. Without the field, one row: the names of the columns.

    Raises:
        MalformedError: where a row is larger than `MAX_RECORD_BYTES`, and for a quote that opens a
            field and is never closed: the rest of the file would be that field.
    """
    text = iter(blocks)
    head = ""
    while len(head) < _HEAD_CHARS and (block := next(text, None)) is not None:
        head += block
    if hint := _EXCEL_HINT.match(head):
        head, delimiter = head[hint.end() :], hint[1]
    try:
        delimiter = delimiter or _likely_delimiter(head, field)
        parsed = _closed(_parsed(itertools.chain(_lines([head], text), [_END]), delimiter))
        # Blank lines may come before the header.
        names = [name.strip() for name in next(filter(None, parsed), [])]
        if field is not None and field not in names:
            if any(names):
                yield dict.fromkeys(names, "")
            return
        for row in parsed:
            if len(row) == len(names):
                yield dict(zip(names, row, strict=True))
            elif row:  # not an empty line
                yield Unusable.WRONG_LENGTH
    except csv.Error as e:
        raise MalformedError(str(e)) from None


def _parsed(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Rows whose fields may be as large as a record; csv's own limit of 128 kB is global."""
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        limit = csv.field_size_limit(MAX_RECORD_BYTES)
        try:
            row = next(reader, None)
        except csv.Error as e:
            raise csv.Error(f"{e}, near line {reader.line_num:,}") from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        yield row


def _closed(parsed: Iterable[list[str]]) -> Iterator[list[str]]:
    """The rows before `_END`."""
    for row in parsed:
        if row == [_END]:
            return
        if row and row[-1].endswith(_END):
            raise csv.Error(
                f"the quote before {row[-1][:40]!r} is never closed, so that the rest of the file "
                "would be one field"
            )
        yield row


def _likely_delimiter(head: str, field: str | None) -> str:
    def rank(delimiter: str) -> tuple[bool, int]:
        names = next(_parsed(io.StringIO(head, newline=""), delimiter), [])
        return field in [name.strip() for name in names], len(names)

    return max(_DELIMITERS, key=rank)


def _lines(*texts: Iterable[str]) -> Iterator[str]:
    """Lines with their ends: a line feed, a carriage return, or both."""
    rest = ""
    for blocks in texts:
        for block in blocks:
            lines = list(io.StringIO(rest + block, newline=""))
            # The last line may go on, and so may a \r with a \n.
            rest = lines.pop() if lines else ""
            yield from lines
            if len(rest) > MAX_RECORD_BYTES:
                raise csv.Error(f"a line is larger than {MAX_RECORD_BYTES >> 20} MB")
    if rest:
        yield rest
