"""Streams the rows of Parquet and Arrow files; rows that are not UTF-8 are left out one by one."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gemmule.data.file_kinds import PARQUET
from gemmule.data.unusable import Unusable
from gemmule.errors import DataError, MissingExtraError

_ROWS = 256  # in memory at a time
_FILE_MAGIC, _OLD_FEATHER = b"ARROW1", b"FEA1"


def rows(
    path: Path, kind: str, field: str | None, *others: str
) -> Iterator[dict[str, Any] | Unusable]:
    """Streams the rows of one column, or of all.

    Args:
        path: the file.
        kind: PARQUET or ARROW; an Arrow file is one of `pyarrow.ipc` or a stream, as the
            datasets library saves it.
        field: the column, or the path to a field in one: "column.field"; None: all columns.
        others: further columns, where they are there.

    Yields:
        Rows, or `Unusable.NOT_UTF8`. Without the column, one row: the names of the columns.

    Raises:
        DataError: when the file is damaged.
        MissingExtraError: when pyarrow is not installed.
    """
    try:
        import pyarrow.lib
    except ImportError:
        raise MissingExtraError("pyarrow", "data", f"reading {path.name}") from None
    try:
        batches = (_parquet if kind == PARQUET else _arrow)(path, field, others)
        for batch in batches:
            yield from _values(batch)
    except pyarrow.lib.ArrowException as e:
        raise DataError(f"{path} is not a readable {kind} file ({e}): fetch it again") from None
    except OSError as e:
        if e.errno is not None:
            raise
        raise DataError(f"{path} is not a readable {kind} file ({e}): fetch it again") from None


def column_of(field: str, names: Iterable[str]) -> str | None:
    """The column that a field or a path to one is in."""
    names = set(names)
    parts = field.split(".")
    heads = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((head for head in heads if head in names), None)


def _columns(field: str | None, others: Sequence[str], names: list[str]) -> list[str]:
    """The columns to read; none without that of the field."""
    if field is None:
        return names
    column = column_of(field, names)
    if column is None:
        return []
    further = [column_of(other, names) for other in others]
    return list(dict.fromkeys([column, *(c for c in further if c is not None)]))


def _parquet(path: Path, field: str | None, others: Sequence[str]) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as table:  # type: ignore[no-untyped-call]
        names = table.schema_arrow.names
        columns = _columns(field, others, names)
        if not columns:
            yield dict.fromkeys(names)
        else:
            yield from table.iter_batches(batch_size=_ROWS, columns=columns)


def _arrow(path: Path, field: str | None, others: Sequence[str]) -> Iterator[Any]:
    from pyarrow import lib
    from pyarrow.ipc import open_file, open_stream

    with path.open("rb") as f:
        head = f.read(8)
    if head.startswith(_OLD_FEATHER):
        raise DataError(
            f"{path} is a Feather file of version 1: save it again with a newer pyarrow"
        )
    with lib.memory_map(str(path)) as source:
        if head.startswith(_FILE_MAGIC):
            file = open_file(source)  # type: ignore[no-untyped-call]
            batches = (file.get_batch(n) for n in range(file.num_record_batches))
            names = file.schema.names
        else:
            stream = open_stream(source)  # type: ignore[no-untyped-call]
            batches, names = iter(stream), stream.schema.names
        columns = _columns(field, others, names)
        if not columns:
            yield dict.fromkeys(names)
            return
        for batch in batches:
            part = batch.select(columns)
            for column in part.columns:
                _check_offsets(column)
            for start in range(0, len(part), _ROWS):
                yield part.slice(start, _ROWS)


def _check_offsets(column: Any) -> None:
    """Refuses an array that points outside of its data: Arrow files are mapped, not parsed.

    Strings are checked as binary data, because text that is not UTF-8 is left out row by row.
    """
    from pyarrow import lib
    from pyarrow.types import is_dictionary, is_large_string, is_string, is_struct

    if is_dictionary(column.type):
        _check_offsets(column.dictionary)
        lib.DictionaryArray.from_arrays(column.indices, column.dictionary)  # checks the indices
    elif is_struct(column.type):
        column.validate()
        for n in range(column.type.num_fields):
            _check_offsets(column.field(n))
    elif is_string(column.type):
        column.view(lib.binary()).validate(full=True)
    elif is_large_string(column.type):
        column.view(lib.large_binary()).validate(full=True)
    else:
        column.validate(full=True)


def _values(batch: Any) -> Iterator[dict[str, Any] | Unusable]:
    if isinstance(batch, dict):
        yield batch
        return
    columns = [_column(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
        broken = any(value is Unusable.NOT_UTF8 for value in values)
        yield Unusable.NOT_UTF8 if broken else dict(zip(batch.schema.names, values, strict=True))


def _column(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Unusable.NOT_UTF8
