"""The documents of a corpus, streamed: text files, and records of JSON, CSV, Parquet and Arrow."""

import dataclasses
import glob
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data import file_kinds, hub_dataset, json_values, records, search, stdlib, text_blocks
from gemmule.data.file_kinds import JSON, TEXT, CorpusFile
from gemmule.data.read_log import ReadLog, printable
from gemmule.data.sections import cut
from gemmule.errors import DataError

DEFAULT_FIELD = "text"
_URL = re.compile(r"(https?|ftp|s3|gs|hf):/")  # Path makes one slash of two
_READ = (
    "text or source files (.txt, .md, .rst, .py, …) or records (.jsonl, .json, .csv, .tsv, "
    ".parquet, .arrow, .tar), also compressed (.gz, .zst, .bz2, .xz)"
)


@dataclasses.dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        key: file and position that it came from, unique within its source.
        text: the content.
        split_key: the string whose hash selects the split; None: the content.
        source: name of the recipe's source that it came from; "" without a recipe.
        licence: its own license; None: that of the corpus.
        ids: its token ids, without <bos> and <eos>, where another program made them; None: the
            text is tokenized.
    """

    key: str
    text: str
    split_key: str | None = None
    source: str = ""
    licence: str | None = None
    ids: npt.NDArray[np.int64] | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a corpus.

    Attributes:
        name: name of the corpus in model cards.
        licence: its license, if known.
        location: the path or pattern as given.
        files: the files to read, sorted by key.
        field: the field of records that holds the text.
        log: what the search left out.
        field_given: whether the user named the field.
        embedded: whether this is the embedded corpus, Python's standard library.
        license_field: the field of records that holds a document's own license; None: none does.
    """

    name: str
    licence: str
    location: str
    files: tuple[CorpusFile, ...]
    field: str
    log: ReadLog
    field_given: bool = False
    embedded: bool = False
    license_field: str | None = None

    @property
    def can_be_cut(self) -> bool:
        """Whether documents are cut into sections where there are few."""
        return True

    @property
    def is_one_text(self) -> bool:
        """Whether it is a single text file, whose documents are its sections."""
        return len(self.files) == 1 and self.files[0].kind == TEXT

    def documents(self, log: ReadLog, in_sections: bool = False) -> Iterator[Document]:
        """Streams the documents in a fixed order.

        Args:
            log: receives unusable records and files.
            in_sections: cut each document into sections of about 64 kB.

        Raises:
            DataError: when a file is damaged or does not have the field.
        """
        for file in self.files:
            try:
                yield from self._in_file(file, log, in_sections)
            except PermissionError:
                log.leave_out("unreadable (permission denied)", file.key)
            except OSError as e:
                raise DataError(f"cannot read {file.path}: {e.strerror or e}") from e
            except UnicodeDecodeError:  # the encoding was told in an earlier pass
                raise DataError(
                    f"{file.path} changed while it was being read: start again"
                ) from None

    def _in_file(self, file: CorpusFile, log: ReadLog, in_sections: bool) -> Iterator[Document]:
        if self.embedded:
            # A module is never cut, and its name selects its split: every version of Python holds
            # out the same modules.
            for text in text_blocks.documents(file, log):
                for name, part in stdlib.read_module(file.key, text):
                    yield Document(name, part, split_key=name)
            return
        actual = file_kinds.as_it_is(file)
        if isinstance(actual, str):
            log.leave_out(actual, file.key)
            return
        texts: Iterator[tuple[str, str | None]]
        if actual.kind == TEXT:
            texts = ((text, None) for text in text_blocks.documents(actual, log, in_sections))
        else:
            read = records.read_licensed(actual, self.field, self.license_field, log)
            texts = _sections(read, in_sections)
        for n, (text, licence) in enumerate(texts):
            log.licensed += licence is not None
            yield Document(f"{file.key}#{n}", text, licence=licence)


def find_source(
    path: Path | None,
    field: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    license_field: str | None = None,
    subset: str | None = None,
) -> Source:
    """Finds the files of a corpus.

    Args:
        path: a file, a folder (searched recursively, without hidden files), a glob pattern, or
            None for the embedded corpus.
        field: the field or column of records that holds the text; None: "text".
        name: name of the corpus; by default that of the file or folder.
        licence: its license, for the model card.
        license_field: the field or column of records that holds a document's own license.
        subset: configuration of a hub's data set, or "CONFIGURATION/SPLIT"; None: its default.

    Raises:
        DataError: when no file is there, none of a known type, or none with fields although
            `field` is given.
    """
    if path is None:
        if wrong := field or license_field:
            option = "--field" if field else "--license-field"
            raise DataError(f"Python's standard library has no field {wrong!r}: leave out {option}")
        modules = tuple(CorpusFile(key, module) for key, module in stdlib.stdlib_files())
        return Source(
            name or stdlib.NAME, licence or stdlib.LICENCE, "stdlib", modules, DEFAULT_FIELD,
            ReadLog(), embedded=True,
        )  # fmt: skip
    path = files.expand(path)
    log = ReadLog()
    matches = _search(path, log)
    card = hub_dataset.read_card(path) if path.is_dir() else None
    if card is not None:
        matches = hub_dataset.select(card, matches, subset, log)
        licence = licence or card.licence
    elif subset is not None:
        raise DataError(
            f"{path} is not a data set of the hub (a folder with a {hub_dataset.CARD} that says so)"
            f", so it has no subset {subset!r}: leave out --subset"
        )
    if not matches:
        raise DataError(f"no text in {path} ({log.summary() or _nothing(path)}): use {_READ}")
    if field is not None and all(file.kind == TEXT for file in matches):
        matches = [_with_fields(file, field) for file in matches]
    return Source(
        name or printable(path.resolve().name),
        licence or "not stated",
        str(path),
        tuple(sorted(matches)),
        field or DEFAULT_FIELD,
        log,
        field is not None,
        license_field=license_field,
    )


def _nothing(path: Path) -> str:
    """Why a search left nothing out and found nothing."""
    if not path.is_dir():
        return "nothing matches it"
    return "nothing to read but hidden files" if any(path.iterdir()) else "it is empty"


def whole_text(path: Path) -> str:
    """The text of a file, folder or pattern in one piece, with single line feeds.

    Records, and files of a folder, are joined by blank lines. A pipe can be read as well, as UTF-8,
    UTF-16 or UTF-32: nothing here reads it twice.

    Raises:
        DataError: when it cannot be read, or holds no text.
    """
    if path.is_fifo():
        try:
            return files.read_text(path)
        except (OSError, ValueError) as e:
            raise DataError(f"cannot read {path} as text ({e})") from None
    source = find_source(path)
    log = ReadLog()
    texts = [document.text for document in source.documents(log)]
    whole = "".join(texts) if source.is_one_text else "\n\n".join(texts)
    if not whole.strip():
        log.update(source.log)
        raise DataError(f"no usable text in {path}: {log.summary() or 'it is empty'}")
    return whole.replace("\r\n", "\n").replace("\r", "\n")


def _search(path: Path, log: ReadLog) -> list[CorpusFile]:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (Path.stat hides nothing, and is slower)
        if stat.S_ISDIR(mode):
            return search.in_folder(path, log)
        if kind := file_kinds.special(mode):
            raise DataError(
                f"{path} is a {kind}: text is read more than once, so write it to a file first"
            )
        return [file_kinds.by_hand(path)]
    except PermissionError as e:
        raise DataError(f"cannot read {path}: {e.strerror}") from None
    except (OSError, ValueError) as e:
        if glob.has_magic(str(path)):
            return search.matching(str(path), log)
        if str(path) == "-":
            raise DataError(
                "text is read more than once, which standard input cannot be: write it to a file "
                "first"
            ) from None
        if _URL.match(str(path)):
            raise DataError(f"{path} is an address: download the file first") from None
        if isinstance(e, FileNotFoundError | NotADirectoryError):
            raise DataError(
                f"no file or folder at {path}: give a file, a folder or a glob pattern"
            ) from None
        raise DataError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None


def _with_fields(file: CorpusFile, field: str) -> CorpusFile:
    """A file that is text by its name, as records if the user says that it has fields.

    Raises:
        DataError: when it has none.
    """
    head = ""
    if file.named:
        try:
            actual = file_kinds.as_it_is(file)
            if isinstance(actual, str):
                return file
            head = next(text_blocks.decoded_stream(actual, ReadLog()), "")
        except (OSError, ValueError) as e:
            raise DataError(f"cannot read {file.path}: {e}") from None
    first, newline, _ = head.partition("\n")
    if json_values.begins_whole(first if newline else head) or json_values.begins_whole(head):
        return file._replace(kind=JSON)
    raise DataError(
        f"{file.path} is text without fields, so it has no field {field!r}: leave out --field, or "
        "name a file of records by its format (.jsonl, .json, .csv, .tsv, .parquet, .arrow)"
    )


def _sections(
    texts: Iterator[tuple[str, str | None]], in_sections: bool
) -> Iterator[tuple[str, str | None]]:
    for text, licence in texts:
        for part in cut([text]) if in_sections else [text]:
            yield part, licence
