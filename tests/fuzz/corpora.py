"""Corpora to damage: text in several encodings, and records in every format."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import zstandard
from mutate import PLAIN, Mutation, pack
from mutate_json import JSON_VALUES
from mutate_text import TEXT

from gemmule.data.read_log import ReadLog
from gemmule.data.sources import find_source
from gemmule.errors import DataError

_MOST_CHARACTERS = 1 << 26  # of all texts of an input of a megabyte: gzip's ratio is a thousand
_ROWS = [
    {"id": n, "text": text, "meta": {"text": text}}
    for n, text in enumerate(["the sea", 'said "the\ncaptain"', "Grüße, à bientôt", "海😈", ""])
]
_BOOK = "The sea, said the captain.\n\nGrüße aus Köln – voilà l’été.\n" * 4


def check_corpus(folder: Path) -> None:
    """Everything that is read is text under a name of its own; what is left out is counted."""
    source = find_source(folder)
    log = ReadLog()
    documents = list(source.documents(log))
    assert len({document.key for document in documents}) == len(documents)
    assert sum(len(document.text) for document in documents) <= _MOST_CHARACTERS
    whole = "".join(document.text for document in documents)
    cut = [document.text for document in source.documents(ReadLog(), in_sections=True)]
    assert "".join(cut) == whole
    json.dumps([log.left_out, log.examples, log.notes])
    log.update(source.log)
    if log.left_out:
        raise DataError(f"left out: {log.summary()}")


Input = tuple[str, tuple[str, ...], tuple[Sequence[Mutation], ...], list[bytes]]


def inputs() -> list[Input]:
    """Each kind of corpus: its name, files, their mutations, and sound inputs."""
    rows = [json.dumps(row, ensure_ascii=n % 2 == 0) for n, row in enumerate(_ROWS)]
    lines, array = "\n".join(rows), json.dumps(_ROWS, indent=1, ensure_ascii=False)
    json_seeds = [lines, array, "".join(rows), f"{array}\n{array}"]
    tables = [_table(delimiter) for delimiter in ",;\t"]
    texts = [
        _BOOK.encode(codec) for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252")
    ]
    packers: list[Callable[[bytes], bytes]]
    packers = [gzip.compress, bz2.compress, lzma.compress, zstandard.compress]
    return [
        (
            "json_records", ("a.json", "b.jsonl"), (JSON_VALUES + TEXT + PLAIN,) * 2,
            [pack((a.encode(), b.encode())) for a in json_seeds for b in (lines, array)]
            + [pack((a.encode("utf-16"), None)) for a in (lines, array)],
        ),
        (
            "csv_records", ("a.csv", "b.tsv"), (TEXT + PLAIN, TEXT + PLAIN),
            [
                pack((a.encode(codec, "replace"), tables[2].encode(codec, "replace")))
                for a in tables for codec in ("utf-8", "utf-16", "cp1252")
            ],
        ),
        ("text_files", ("a.txt", "b.md"), (TEXT + PLAIN, PLAIN), [pack((t, t)) for t in texts]),
        (
            "compressed_text", ("a.txt.gz", "b.txt.bz2", "c.txt.xz", "d.jsonl.zst"), ((),) * 4,
            [pack([p((lines if p is packers[3] else _BOOK).encode()) for p in packers])],
        ),
        ("arrow_records", ("a.parquet", "b.arrow", "c.feather"), ((),) * 3, _arrow()),
    ]  # fmt: skip


def _table(delimiter: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "text"])
    writer.writerows([row["id"], row["text"]] for row in _ROWS)
    return out.getvalue()


def _arrow() -> list[bytes]:
    seeds = []
    table = pyarrow.table({"text": [row["text"] for row in _ROWS] * 3})
    for column in (table["text"], table["text"].dictionary_encode()):
        changed = pyarrow.table({"id": list(range(len(column))), "text": column})
        parquet = io.BytesIO()
        pyarrow.parquet.write_table(changed, parquet)
        parts = [parquet.getvalue()]
        for new in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
            sink = io.BytesIO()
            with new(sink, changed.schema) as writer:
                writer.write_table(changed)
            parts.append(sink.getvalue())
        seeds += [pack(parts), pack((parts[0], None, None)), pack((None, *parts[1:]))]
    return seeds
