"""Finding and reading documents: text files, JSON lines and Parquet, one document at a time."""

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
# A text file above this is cut into sections as it is read, so that memory stays bounded.
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
_BLOCK_CHARS = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        key: where it came from, unique within its source.
        text: its content.
        split_key: what decides its split; None leaves that to the content.
    """

    key: str
    text: str
    split_key: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus as the user named it.

    Attributes:
        name: what a model card calls it.
        licence: as far as it is known.
        location: the path or pattern as given.
        files: (key, path) of each file to read, sorted by key.
        field: the JSON field or Parquet column that holds the text.
        left_out: files not read, counted by reason.
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
            dropped: counts here, by reason, what could not be used.
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
            # A module is never cut, and its name decides its split: the same modules are held
            # out with every version of Python.
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
        path: a file, a folder (searched through, hidden files left out), a glob pattern, or None
            for the embedded corpus.
        field: the JSON field or Parquet column that holds the text.
        name: what to call it; by default the file's or folder's name.
        licence: its licence, for the model card.

    Raises:
        DataError: when there is nothing there, or nothing of a known type.
    """
    if path is None:
        files = tuple(stdlib.stdlib_files())
        return Source(
            name or stdlib.NAME, licence or stdlib.LICENCE, "stdlib", files, field, {}, True
        )
    path = Path(path)
    left_out: Counter[str] = Counter()
    if path.is_dir():
        found = _in_folder(path, left_out)
    elif path.exists():
        found = [(path.name, path)]  # named by hand: read whatever its suffix
    elif glob.has_magic(str(path)):
        found = _matching(str(path), left_out)
    else:
        raise DataError(f"no file or folder at {path}: give a file, a folder or a glob pattern")
    if not found:
        other = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise DataError(
            f"no text in {path} ({other or 'it is empty'}): use text or source files (.txt, .md, "
            ".rst, .py, …), .jsonl, .jsonl.gz, .jsonl.zst or .parquet"
        )
    return Source(
        name or path.resolve().name,
        licence or "not stated",
        str(path),
        tuple(sorted(found)),
        field,
        dict(left_out),
    )


def _in_folder(root: Path, left_out: Counter[str]) -> list[tuple[str, Path]]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if _is_known(path) and path.is_file():
                found.append((path.relative_to(root).as_posix(), path))
            else:
                left_out["files of another type"] += 1
    return found


def _matching(pattern: str, left_out: Counter[str]) -> list[tuple[str, Path]]:
    found = []
    for match in glob.iglob(pattern, recursive=True):  # noqa: PTH207 (it may be absolute)
        path = Path(match)
        if path.is_file():
            if _is_known(path):
                found.append((path.as_posix(), path))
            else:
                left_out["files of another type"] += 1
    return found


def _is_known(path: Path) -> bool:
    return path.suffix.lower() in TEXT_SUFFIXES or records.is_records(path)


def _sections(texts: Iterator[str], in_sections: bool) -> Iterator[str]:
    for text in texts:
        yield from cut([text]) if in_sections else [text]


def _read_text(path: Path, dropped: Counter[str], in_sections: bool = False) -> Iterator[str]:
    """Yields a text file whole, or in sections; nothing when it is not text."""
    try:
        reason = _why_not_text(path)
        if reason:
            dropped[reason] += 1
            return
        # newline="" keeps \r\n as it is; utf-8-sig takes a byte order mark off.
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
