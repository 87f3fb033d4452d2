"""Finds and reads the documents of a corpus: text files, JSON lines and Parquet, streamed."""

import codecs
import dataclasses
import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from gemmule.data import records, stdlib
from gemmule.data.sections import cut
from gemmule.errors import DataError

TEXT_SUFFIXES = {
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm"),
    *(".xml", ".py", ".pyi", ".pyx", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu"),
    *(".rs", ".go", ".java", ".kt", ".scala", ".swift", ".js", ".mjs", ".ts", ".jsx", ".tsx"),
    *(".vue", ".css", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".sh", ".bash", ".zsh"),
    *(".ps1", ".sql", ".hs", ".ml", ".mli", ".clj", ".ex", ".exs", ".erl", ".cs", ".fs", ".m"),
    *(".f", ".f90", ".f95", ".zig", ".nim", ".dart", ".toml", ".yaml", ".yml", ".ini", ".cfg"),
}
# Larger text files are cut into sections while they are read, so that memory stays bounded.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
_BLOCK_CHARS = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        key: file and position that it came from, unique within its source.
        text: the content.
        split_key: the string whose hash selects the split; None: the content.
    """

    key: str
    text: str
    split_key: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a corpus.

    Attributes:
        name: name of the corpus in model cards.
        licence: its license, if known.
        location: the path or pattern as given.
        files: (key, path) of each file to read, sorted by key.
        field: the JSON field or Parquet column that holds the text.
        left_out: number of files that are not read, by reason.
        embedded: whether this is the embedded corpus, Python's standard library.
    """

    name: str
    licence: str
    location: str
    files: tuple[tuple[str, Path], ...]
    field: str
    left_out: dict[str, int]
    embedded: bool = False

    def documents(self, dropped: Counter[str], in_sections: bool = False) -> Iterator[Document]:
        """Streams the documents in a fixed order.

        Args:
            dropped: receives the number of unusable records and files, by reason.
            in_sections: cut each document into sections of about 64 kB.

        Raises:
            DataError: when a file is damaged or does not have the field.
        """
        for key, path in self.files:
            try:
                yield from self._in_file(key, path, dropped, in_sections)
            except OSError as e:
                raise DataError(f"cannot read {path}: {e.strerror or e}") from e

    def _in_file(
        self, key: str, path: Path, dropped: Counter[str], in_sections: bool
    ) -> Iterator[Document]:
        if self.embedded:
            # A module is never cut, and its name selects its split: every version of Python holds
            # out the same modules.
            for text in _read_text(path, dropped):
                for name, part in stdlib.read_module(key, text):
                    yield Document(name, part, split_key=name)
            return
        if records.is_records(path):
            texts = _sections(records.read_records(path, self.field, dropped), in_sections)
        else:
            texts = _read_text(path, dropped, in_sections)
        for n, text in enumerate(texts):
            yield Document(f"{key}#{n}", text)


def find_source(
    path: Path | None, field: str = "text", name: str | None = None, licence: str | None = None
) -> Source:
    """Finds the files of a corpus.

    Args:
        path: a file, a folder (searched recursively, without hidden files), a glob pattern, or
            None for the embedded corpus.
        field: the JSON field or Parquet column that holds the text.
        name: name of the corpus; by default that of the file or folder.
        licence: its license, for the model card.

    Raises:
        DataError: when no file is there, or none of a known type.
    """
    if path is None:
        files = tuple(stdlib.stdlib_files())
        return Source(
            name or stdlib.NAME, licence or stdlib.LICENCE, "stdlib", files, field, {}, True
        )
    path = Path(path)
    left_out: Counter[str] = Counter()
    if path.is_dir():
        matches = _in_folder(path, left_out)
    elif path.exists():
        matches = [(path.name, path)]  # named explicitly: read whatever its suffix
    elif glob.has_magic(str(path)):
        matches = _matching(str(path), left_out)
    else:
        raise DataError(f"no file or folder at {path}: give a file, a folder or a glob pattern")
    if not matches:
        other = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise DataError(
            f"no text in {path} ({other or 'it is empty'}): use text or source files (.txt, .md, "
            ".rst, .py, …), .jsonl, .jsonl.gz, .jsonl.zst or .parquet"
        )
    return Source(
        name or path.resolve().name,
        licence or "not stated",
        str(path),
        tuple(sorted(matches)),
        field,
        dict(left_out),
    )


def _in_folder(root: Path, left_out: Counter[str]) -> list[tuple[str, Path]]:
    matches = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if _is_known(path) and path.is_file():
                matches.append((path.relative_to(root).as_posix(), path))
            else:
                left_out["files of another type"] += 1
    return matches


def _matching(pattern: str, left_out: Counter[str]) -> list[tuple[str, Path]]:
    matches = []
    for match in glob.iglob(pattern, recursive=True):  # noqa: PTH207 (it may be absolute)
        path = Path(match)
        if path.is_file():
            if _is_known(path):
                matches.append((path.as_posix(), path))
            else:
                left_out["files of another type"] += 1
    return matches


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in TEXT_SUFFIXES or records.is_records(path)


def _sections(texts: Iterator[str], in_sections: bool) -> Iterator[str]:
    for text in texts:
        yield from cut([text]) if in_sections else [text]


def _read_text(path: Path, dropped: Counter[str], in_sections: bool = False) -> Iterator[str]:
    """Yields a text file whole or in sections; yields nothing if it is not text."""
    try:
        reason = _why_not_text(path)
        if reason:
            dropped[reason] += 1
            return
        # newline="" keeps \r\n as it is; utf-8-sig strips a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as f:
            if in_sections or path.stat().st_size > MAX_DOCUMENT_BYTES:
                yield from cut(iter(lambda: f.read(_BLOCK_CHARS), ""))
            else:
                yield f.read()
    except PermissionError:
        dropped["unreadable (permission denied)"] += 1


def _why_not_text(path: Path) -> str | None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as f:
        while block := f.read(_BLOCK_CHARS):
            if b"\0" in block:
                return "binary (NUL bytes)"
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                return "not UTF-8"
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "not UTF-8"
    return None
