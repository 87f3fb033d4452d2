"""One file of raw token ids, and where its documents end.

Both formats are little-endian unsigned integers of 2 or 4 bytes without a header.

- datatrove: `X.ds`; `X.ds.index` has the end of each document, in tokens, as uint64;
  `X.ds.metadata` is for people, `X.ds.loss` has a loss mask.
- OLMo and dolma: `X.npy`; `X.csv.gz` has a line start,end,id,src,loc for each document.

Without the second file, a document ends after each <eos>.
"""

import dataclasses
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule.errors import DataError

DATATROVE, OLMO = ".ds", ".npy"
INDEX_TYPE = np.dtype("<u8")
_NUMPY_MAGIC = b"\x93NUMPY"
_BLOCK = 1 << 20  # tokens searched for <eos> at a time


@dataclasses.dataclass(frozen=True, eq=False)
class TokenFile:
    """A file of tokens.

    Attributes:
        path: the file.
        dtype: type of its ids.
        ends: number of tokens up to the end of each document, shape [documents]; None: documents
            end with <eos>.
    """

    path: Path
    dtype: np.dtype[Any]
    ends: npt.NDArray[np.int64] | None

    @classmethod
    def open(cls, path: Path, vocab_size: int) -> "TokenFile":
        """Finds out how ids are stored and where documents end.

        Args:
            path: a file named .ds or .npy.
            vocab_size: number of ids; decides between 2 and 4 bytes where no index does.

        Raises:
            DataError: when the file or its index is damaged, or it cannot be read as it is.
            OSError: when it cannot be read.
        """
        size = path.stat().st_size
        with path.open("rb") as f:
            if f.read(len(_NUMPY_MAGIC)) == _NUMPY_MAGIC:
                raise DataError(
                    f"{path} was written by numpy.save and has a header: OLMo's files are raw ids; "
                    "write it with array.tofile(path)"
                )
        loss = path.with_name(f"{path.name}.loss")
        if path.suffix == DATATROVE and loss.is_file():
            raise DataError(
                f"{loss} is a loss mask, and token files are read with every token as a label: "
                "move it away to train on all of them, or prepare conversations with gemmule sft"
            )
        ends = _index(path) if path.suffix == DATATROVE else _csv(path)
        width = id_bytes(vocab_size)
        if ends is not None:
            _check_order(path, ends)
            last = int(ends[-1]) if len(ends) else 0
            width = next((w for w in (2, 4) if last * w == size), 0)
            if not width:
                raise DataError(
                    f"{path} has {size:,} bytes and its documents end after {last:,} tokens, which "
                    "are neither 2 nor 4 bytes each: one of the files is damaged, fetch both again"
                )
        elif size % width:
            raise DataError(
                f"{path} has {size:,} bytes, no multiple of the {width} bytes of an id: it is cut "
                "short, or of another vocabulary"
            )
        return cls(path, np.dtype(f"<u{width}"), ends)

    def documents(self, eos_id: int) -> Iterator[npt.NDArray[np.int64]]:
        """The ids of each document, as they are stored."""
        if not self.path.stat().st_size:
            return
        tokens = np.memmap(self.path, self.dtype, mode="r")
        start = 0
        for end in _ends_by_eos(tokens, eos_id) if self.ends is None else self.ends.tolist():
            yield tokens[start:end].astype(np.int64)
            start = end


def id_bytes(vocab_size: int) -> int:
    """Bytes of an id, as datatrove and OLMo choose them."""
    return 2 if vocab_size <= 65536 else 4


def _check_order(path: Path, ends: npt.NDArray[np.int64]) -> None:
    if (np.diff(ends, prepend=0) < 0).any():
        raise DataError(f"the documents of {path} end before they begin: its index is damaged")


def _index(path: Path) -> npt.NDArray[np.int64] | None:
    index = path.with_name(f"{path.name}.index")
    if not index.is_file():
        return None
    data = index.read_bytes()
    if len(data) % INDEX_TYPE.itemsize:
        raise DataError(
            f"{index} has {len(data):,} bytes, no multiple of {INDEX_TYPE.itemsize}: it is cut "
            "short, fetch it again"
        )
    return np.frombuffer(data, INDEX_TYPE).astype(np.int64)


def _csv(path: Path) -> npt.NDArray[np.int64] | None:
    table = path.with_suffix(".csv.gz")
    if not table.is_file():
        return None
    ends: list[int] = []
    try:
        with gzip.open(table, "rt", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                start, end = (int(number) for number in line.split(",", 2)[:2])
                if start != (ends[-1] if ends else 0):
                    raise ValueError(f"a document starts at {start:,}, after one that ended at "
                                     f"{ends[-1] if ends else 0:,}")  # fmt: skip
                ends.append(end)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{table} is not a table of start,end,id,src,loc ({e})") from None
    return np.array(ends, np.int64)


def _ends_by_eos(tokens: npt.NDArray[Any], eos_id: int) -> Iterator[int]:
    end = 0
    for first in range(0, len(tokens), _BLOCK):
        for place in np.flatnonzero(tokens[first : first + _BLOCK] == eos_id).tolist():
            end = first + place + 1
            yield end
    if end < len(tokens):
        yield len(tokens)
