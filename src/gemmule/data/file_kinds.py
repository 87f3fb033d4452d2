"""What a file of a corpus holds, told by its name, and by its content where the name says nothing.

Names come first because a corpus is searched before it is read: `book.txt.gz` is compressed text,
`c4-train.00000-of-00001.json.gz` compressed records.
"""

import re
import stat
from pathlib import Path
from typing import NamedTuple

from gemmule import files
from gemmule.data import compression
from gemmule.data.compression import COMPRESSIONS, MAGIC
from gemmule.data.read_log import ADVICE
from gemmule.errors import DataError

TEXT_SUFFIXES = {
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm"),
    *(".xml", ".py", ".pyi", ".pyx", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu"),
    *(".rs", ".go", ".java", ".kt", ".scala", ".swift", ".js", ".mjs", ".ts", ".jsx", ".tsx"),
    *(".vue", ".css", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".sh", ".bash", ".zsh"),
    *(".ps1", ".sql", ".hs", ".ml", ".mli", ".clj", ".ex", ".exs", ".erl", ".cs", ".fs", ".m"),
    *(".f", ".f90", ".f95", ".zig", ".nim", ".dart", ".toml", ".yaml", ".yml", ".ini", ".cfg"),
}
TEXT, JSON, JSON_LINES, CSV, TSV = "text", "JSON", "JSON lines", "CSV", "TSV"
PARQUET, ARROW, TAR = "Parquet", "Arrow", "tar"
_RECORD_SUFFIXES = {
    **{".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".jsonlines": JSON_LINES, ".json": JSON},
    **{".csv": CSV, ".tsv": TSV, ".parquet": PARQUET, ".arrow": ARROW, ".feather": ARROW},
    **dict.fromkeys((".tar", ".tgz", ".tbz", ".txz"), TAR),
}
# Formats for data of every sort: in a folder, one that lacks the field is left out, not an error.
GENERAL_KINDS = {JSON, CSV, TSV, TAR}
_TABLES = {PARQUET, ARROW}  # which compress their columns themselves
OTHER = "files of another type"
LFS_POINTERS = "Git LFS pointers"
_OTHER_SUFFIXES = {
    ".pdf": "PDF files",
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf", ".pages"), "word processor files"),
    **dict.fromkeys((".epub", ".mobi", ".azw", ".azw3"), "e-books"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "spreadsheets"),
    **dict.fromkeys((".zip", ".7z", ".rar"), "archives"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), "databases"),
}
_CONTENT = {b"PAR1": PARQUET, b"ARROW1": ARROW, b"\xff\xff\xff\xff": ARROW}
_OTHER_CONTENT = {
    b"%PDF-": "PDF files",
    b"{\\rtf": "word processor files",
    b"PK\x03\x04": "archives",
    b"7z\xbc\xaf\x27\x1c": "archives",
    b"Rar!": "archives",
    b"SQLite format 3\0": "databases",
}
# What Dataset.map leaves next to a saved dataset: the same texts again, changed.
_DATASETS_CACHE = re.compile(r"cache-[0-9a-f]{16}\.arrow")
_TAR_MAGIC, _TAR_AT = b"ustar", 257


class CorpusFile(NamedTuple):
    """A file to read.

    Attributes:
        key: its name in the corpus, unique.
        path: where it is.
        kind: what it holds: TEXT, or the format of its records.
        compression: one of `COMPRESSIONS`, or None.
        named: whether the user named it, rather than a folder or pattern that holds it.
    """

    key: str
    path: Path
    kind: str = TEXT
    compression: str | None = None
    named: bool = False


def by_name(key: str, path: Path) -> CorpusFile | str:
    """A file found in a search, or the reason for leaving it out."""
    stem, suffix = _split(path.name.lower())
    compression = suffix if suffix in COMPRESSIONS else None
    if compression:
        suffix = _split(stem)[1]
    if suffix in _OTHER_SUFFIXES:
        return _OTHER_SUFFIXES[suffix]
    if _DATASETS_CACHE.fullmatch(path.name):
        return "caches of the datasets library"
    kind = TEXT if suffix in TEXT_SUFFIXES else _RECORD_SUFFIXES.get(suffix)
    if kind is None or (compression and kind in _TABLES):
        return OTHER
    return CorpusFile(key, path, kind, compression)


def _split(name: str) -> tuple[str, str]:
    stem, dot, suffix = name.rpartition(".")
    return (stem, dot + suffix) if stem else (name, "")


def special(mode: int) -> str | None:
    """What a file is that is neither a regular file nor a folder."""
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "device"
    return None


def by_hand(path: Path) -> CorpusFile:
    """A file that the user named: read whatever its suffix, unless it cannot be text.

    Raises:
        DataError: when it is of a known kind that holds no text as such.
        OSError: when it cannot be read.
    """
    with path.open("rb") as f:
        head = f.read(512)
    file = by_name(path.name, path)
    reason = next((r for mark, r in _OTHER_CONTENT.items() if head.startswith(mark)), None)
    reason = reason or (file if isinstance(file, str) and file in ADVICE else None)
    if reason:
        raise DataError(f"cannot read {path}: {reason} are not read; {ADVICE[reason]}")
    kind = next((kind for mark, kind in _CONTENT.items() if head.startswith(mark)), TEXT)
    if head[_TAR_AT:].startswith(_TAR_MAGIC):
        kind = TAR
    if isinstance(file, CorpusFile):
        if TEXT not in {kind, file.kind}:
            file = file._replace(kind=kind)
        return file._replace(named=True)
    compression = next((name for mark, name in MAGIC.items() if head.startswith(mark)), None)
    if compression:
        kind = _kind_within(path)
    return CorpusFile(path.name, path, kind, compression, named=True)


def as_it_is(file: CorpusFile) -> CorpusFile | str:
    """The file with the compression that its content has, or the reason for leaving it out.

    Raises:
        OSError: when it cannot be read.
    """
    if files.is_lfs_pointer(file.path):
        return LFS_POINTERS
    if file.kind in _TABLES:
        return file
    return file._replace(compression=compression.actual(file.path, file.compression))


def _kind_within(path: Path) -> str:
    """The kind of a compressed file whose name does not end like one: `part-00000.json.1`."""
    for suffix in reversed(path.suffixes):
        if suffix.lower() in _RECORD_SUFFIXES:
            return _RECORD_SUFFIXES[suffix.lower()]
    return TEXT
