"""A folder of token files as the source of a corpus: its documents have ids already."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.read_log import ReadLog, printable
from gemmule.data.sources import Document, Source
from gemmule.data.token_shards.token_file import DATATROVE, OLMO, TokenFile
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer

_INSIDE = "<bos> or <eos> within the document"


@dataclasses.dataclass(frozen=True)
class TokenSource(Source):
    """Documents of token files, with the text that their ids stand for.

    The text decides what is a duplicate and which split a document is in, as for any other corpus;
    the ids stay as they are. A <bos> at a document's start and an <eos> at its end are put there
    again when it is stored.

    Attributes:
        tokenizer: tokenizer that made the ids.
        token_files: the files, with their names in the corpus.
    """

    tokenizer: Tokenizer = dataclasses.field(kw_only=True)
    token_files: tuple[tuple[str, TokenFile], ...] = ()

    @property
    def can_be_cut(self) -> bool:
        """Whether a corpus of few documents is cut into sections: not where ids are given."""
        return False

    def documents(self, log: ReadLog, in_sections: bool = False) -> Iterator[Document]:
        """Streams the documents, in the order of the files' names.

        Raises:
            DataError: for an id that the tokenizer does not have.
        """
        for key, file in self.token_files:
            start = 0
            for n, stored in enumerate(file.documents(self.tokenizer.eos_id)):
                self._check(file, stored, start)
                start += len(stored)
                name = f"{key}#{n}"
                ids = self._without_ends(stored)
                if ((ids == self.tokenizer.bos_id) | (ids == self.tokenizer.eos_id)).any():
                    log.leave_out(_INSIDE, name)
                    continue
                yield Document(name, self.tokenizer.decode(ids.tolist()), ids=ids)

    def _check(self, file: TokenFile, ids: npt.NDArray[np.int64], start: int) -> None:
        if len(ids) and ids.max() >= self.tokenizer.vocab_size:
            place = int((ids >= self.tokenizer.vocab_size).argmax())
            raise DataError(
                f"token {start + place:,} of {file.path} has the id {ids[place]:,}, and the "
                f"tokenizer has {self.tokenizer.vocab_size:,} ids: name the tokenizer that made "
                f"these files (their ids are read as {file.dtype.itemsize} bytes each)"
            )

    def _without_ends(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        first = len(ids) > 0 and ids[0] == self.tokenizer.bos_id
        last = len(ids) > first and ids[-1] == self.tokenizer.eos_id
        return ids[int(first) : len(ids) - int(last)]


def find_tokens(
    path: Path, tokenizer: Tokenizer, name: str | None = None, licence: str | None = None
) -> TokenSource:
    """Finds the token files below a folder.

    Args:
        path: a folder with .ds or .npy files, in it or in folders below it, or one such file.
        tokenizer: the tokenizer that made them.
        name: name of the corpus; by default that of the folder.
        licence: its license, for the model card.

    Raises:
        DataError: when there is none, or one cannot be read.
    """
    path = files.expand(path)
    if not path.exists():
        raise DataError(f"no file or folder at {path}: give a folder of .ds or .npy token files")
    log = ReadLog()
    places = [path] if path.is_file() else sorted(path.rglob("*"))
    token_files = []
    for place in places:
        key = place.name if place == path else place.relative_to(path).as_posix()
        if place.suffix in (DATATROVE, OLMO) and place.is_file():
            try:
                token_files.append((key, TokenFile.open(place, tokenizer.vocab_size)))
            except OSError as e:
                raise DataError(f"cannot read {place}: {e.strerror or e}") from e
    if not token_files:
        raise DataError(
            f"no token files in {path}: give a folder of datatrove's .ds or of OLMo's .npy files"
        )
    return TokenSource(
        name or printable(path.resolve().name),
        licence or "not stated",
        str(path),
        (),
        "",
        log,
        tokenizer=tokenizer,
        token_files=tuple(token_files),
    )
