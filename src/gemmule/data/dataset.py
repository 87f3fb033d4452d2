"""A prepared corpus on disk: memory-mapped token shards and a manifest.

manifest.json                 written last: a folder without one is unfinished
tokenizer/                    a copy of the tokenizer that made it
shards/train-00000.tokens     little-endian uint16 (uint32 from 65536 ids): <bos> … <eos> <bos> …
shards/train-00000.offsets    little-endian int64: where each document starts in the shard
shards/train-00000.json       counts, checksums, and the documents' names
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer

FORMAT = 1
MANIFEST = "manifest.json"
OFFSET_TYPE = np.dtype("<i8")
NAMES = "names"  # in a shard's .json: where each of its documents came from


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The type tokens are stored in."""
    return np.dtype("<u2") if vocab_size < 65536 else np.dtype("<u4")


class Split:
    """One split's tokens, every document stored as <bos> ids <eos>.

    Attributes:
        name: train, validation or heldout.
        token_count: tokens, <bos> and <eos> included.
        document_count: documents.
        byte_count: UTF-8 bytes of the text.
        bos_id: marks where a document starts.
        pad_id: fills incomplete rows.
    """

    def __init__(self, name: str, folder: Path, entry: dict[str, Any], dtype: np.dtype[Any]):
        self.name = name
        self.token_count: int = entry["tokens"]
        self.document_count: int = entry["documents"]
        self.byte_count: int = entry["bytes"]
        self.bos_id = Tokenizer.bos_id
        self.pad_id = Tokenizer.pad_id
        self._dtype = dtype
        self._paths = [folder / shard["file"] for shard in entry["shards"]]
        self._starts = np.cumsum([0] + [shard["tokens"] for shard in entry["shards"]])
        self._first_documents = np.cumsum([0] + [shard["documents"] for shard in entry["shards"]])
        self._maps: dict[int, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return self.token_count

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens start to stop (exclusive, clipped to the split), shape [stop - start]."""
        stop = min(stop, self.token_count)
        out = np.empty(max(stop - start, 0), np.int64)
        done = 0
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < len(out):
            offset = start + done - int(self._starts[shard])
            part = self._map(shard)[offset : offset + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out

    def document(self, index: int) -> npt.NDArray[np.int64]:
        """The tokens of one document, <bos> and <eos> included."""
        if not 0 <= index < self.document_count:
            raise DataError(f"no document {index}: {self.name} has {self.document_count}")
        shard = int(np.searchsorted(self._first_documents, index, side="right")) - 1
        offsets = np.fromfile(self._paths[shard].with_suffix(".offsets"), OFFSET_TYPE)
        ends = np.append(offsets[1:], self._starts[shard + 1] - self._starts[shard])
        local = index - int(self._first_documents[shard])
        return self._map(shard)[offsets[local] : ends[local]].astype(np.int64)

    def document_starts(self) -> npt.NDArray[np.int64]:
        """The index in the split of each document's <bos>, shape [document_count]."""
        parts = [
            np.fromfile(path.with_suffix(".offsets"), OFFSET_TYPE) + first
            for path, first in zip(self._paths, self._starts[:-1], strict=True)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def document_names(self) -> Iterator[str | None]:
        """Where each document came from, in order: a file of the corpus, a module, a record.

        None for one of a shard without names: earlier versions kept none.
        """
        counts = np.diff(self._first_documents).tolist()
        for path, count in zip(self._paths, counts, strict=True):
            try:
                names = files.read_json(path.with_suffix(".json"))[NAMES]
                whole = len(names) == count and all(isinstance(name, str) for name in names)
            except (OSError, ValueError, KeyError, TypeError):
                whole = False
            yield from names if whole else [None] * count

    def _map(self, shard: int) -> npt.NDArray[Any]:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self._paths[shard], self._dtype, mode="r")
        return self._maps[shard]


class Dataset:
    """A finished data folder, opened with `Dataset.open`.

    Attributes:
        path: the folder.
        manifest: what it was made from and what it holds, as read from manifest.json.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path, tokenizer: Tokenizer | None = None) -> "Dataset":
        """Opens a data folder and checks that it is whole.

        Args:
            path: the folder `prepare` wrote.
            tokenizer: when given, the one the folder must have been made with.

        Raises:
            DataError: when the folder is missing, unfinished, damaged, of another version, or made
                with another tokenizer.
        """
        path = Path(path)
        if not path.is_dir():
            raise DataError(f"no data folder at {path}: make one with gemmule data")
        try:
            manifest = files.read_json(path / MANIFEST)
        except FileNotFoundError:
            raise DataError(
                f"{path} is not a finished data folder (it has no {MANIFEST}): run the gemmule data"
                " command that makes it again, and it goes on where it stopped"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, OSError) as e:
            raise DataError(f"{path / MANIFEST} cannot be read ({e}): make it again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(f"{path} is of another version of gemmule: make it again")
        if tokenizer is not None and manifest["tokenizer"] != tokenizer.fingerprint:
            raise DataError(
                f"{path} was made with another tokenizer (fingerprint {manifest['tokenizer'][:12]},"
                f" expected {tokenizer.fingerprint[:12]}): prepare the text with this one"
            )
        dataset = cls(path, manifest)
        dataset._check_sizes()
        return dataset

    def _check_sizes(self) -> None:
        width = self._dtype.itemsize
        for entry in self.manifest["splits"].values():
            for shard in entry["shards"]:
                file = self.path / shard["file"]
                sizes = (
                    (file, shard["tokens"] * width),
                    (file.with_suffix(".offsets"), shard["documents"] * OFFSET_TYPE.itemsize),
                )
                for part, expected in sizes:
                    found = part.stat().st_size if part.is_file() else None
                    if found != expected:
                        problem = "is missing" if found is None else f"has {found} bytes"
                        raise DataError(
                            f"{part} {problem}, the manifest says {expected}: the data folder is "
                            "damaged, delete it and make it again"
                        )

    @property
    def _dtype(self) -> np.dtype[Any]:
        return token_type(self.manifest["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the tokens of every split: equal text, splits, order and tokenizer."""
        return str(self.manifest["fingerprint"])

    @property
    def name(self) -> str:
        """What a model card calls the corpus."""
        return str(self.manifest["name"])

    @property
    def licence(self) -> str:
        """The corpus's licence, as far as it is known."""
        return str(self.manifest["licence"])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made it, from the folder's own copy."""
        return Tokenizer.load(self.path / "tokenizer")

    def split(self, name: str) -> Split:
        """The tokens of "train", "validation" or "heldout".

        Raises:
            DataError: for another name.
        """
        splits = self.manifest["splits"]
        if name not in splits:
            raise DataError(f"no split {name!r}: a dataset has {', '.join(splits)}")
        return Split(name, self.path, splits[name], self._dtype)
