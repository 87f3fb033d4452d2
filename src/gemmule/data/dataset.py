"""A prepared corpus on disk: memory-mapped token shards and a manifest (docs/data-format.md).

manifest.json                 written last: a folder without one is unfinished
tokenizer/                    a copy of the tokenizer that made it
shards/train-00000.tokens     little-endian uint16 (uint32 from 65536 ids): <bos> … <eos> <bos> …
shards/train-00000.offsets    little-endian int64: index of each document's <bos> in the shard
shards/train-00000.mask       optional loss mask, one bit per token: 1 where the token is a label
shards/train-00000.json       counts, checksums, and the documents' names
"""

import functools
import hashlib
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
PROVENANCE = "provenance"  # in a shard's .json: its documents' licenses and sources, if known
TOKENS_BY = "tokens_by"  # in an entry, if known: tokens by license and by source
MASK_CHECKSUM = "mask_sha256"  # in the entry of a shard that has a loss mask
WHOLE_DOCUMENTS = "whole_documents"  # in the manifest: whether no document may be cut


def token_type(vocab_size: int) -> np.dtype[Any]:
    """The type that tokens are stored in."""
    return np.dtype("<u2") if vocab_size < 65536 else np.dtype("<u4")


def mask_bytes(tokens: int) -> int:
    """Size of the loss mask of a shard, bytes."""
    return -(-tokens // 8)


_REMAKE = "the data folder is damaged, delete it and make it again"


class Split:
    """The tokens of one split, every document stored as <bos> ids <eos>.

    Attributes:
        name: "train", "validation" or "heldout".
        token_count: number of tokens, <bos> and <eos> included.
        document_count: number of documents.
        byte_count: UTF-8 bytes of the text.
        bos_id: id of the token that starts each document.
        pad_id: id that fills incomplete sequences.
        has_mask: whether any shard has a loss mask.
        whole_documents: whether no document may be cut, see gemmule.data.whole_documents.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        entry: dict[str, Any],
        dtype: np.dtype[Any],
        whole_documents: bool = False,
    ) -> None:
        self.name = name
        self.whole_documents = whole_documents
        self.token_count: int = entry["tokens"]
        self.document_count: int = entry["documents"]
        self.byte_count: int = entry["bytes"]
        self.bos_id = Tokenizer.bos_id
        self.pad_id = Tokenizer.pad_id
        self._dtype = dtype
        self._paths = [folder / shard["file"] for shard in entry["shards"]]
        self._starts = np.cumsum([0] + [shard["tokens"] for shard in entry["shards"]])
        self._first_documents = np.cumsum([0] + [shard["documents"] for shard in entry["shards"]])
        self._checksums = [shard.get(MASK_CHECKSUM) for shard in entry["shards"]]
        self.has_mask = any(self._checksums)
        self._maps: dict[int, npt.NDArray[Any]] = {}
        self._masks: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return self.token_count

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Tokens start to stop (exclusive, clipped to the split), shape [stop - start]."""
        out = np.empty(max(min(stop, self.token_count) - start, 0), np.int64)
        for shard, inside, place in self._parts(start, len(out)):
            out[place] = self._map(shard)[inside]
        return out

    def read_mask(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Loss mask of the tokens that `read` returns: True where a token is a label.

        Tokens of shards without a mask are all labels.

        Raises:
            DataError: when a mask is missing or damaged.
        """
        out = np.ones(max(min(stop, self.token_count) - start, 0), np.bool_)
        for shard, inside, place in self._parts(start, len(out)):
            if self._checksums[shard] is not None:
                first = inside.start // 8
                bits = self._mask(shard)[first : mask_bytes(inside.stop)]
                bits = np.unpackbits(bits, bitorder="little")
                out[place] = bits[inside.start - 8 * first : inside.stop - 8 * first]
        return out

    def _parts(self, start: int, count: int) -> Iterator[tuple[int, slice, slice]]:
        """Where `count` tokens from `start` on are: shard, slice of it, slice of the tokens."""
        done = 0
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < count:
            offset = start + done - int(self._starts[shard])
            size = min(count - done, int(self._starts[shard + 1]) - start - done)
            yield shard, slice(offset, offset + size), slice(done, done + size)
            done += size
            shard += 1

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
        """Origin of each document, in order: a file of the corpus, a module, a record.

        None for the documents of a shard without names: earlier versions did not store them.
        """
        counts = np.diff(self._first_documents).tolist()
        for path, count in zip(self._paths, counts, strict=True):
            try:
                names = files.read_json(path.with_suffix(".json"))[NAMES]
                complete = len(names) == count and all(isinstance(name, str) for name in names)
            except (OSError, ValueError, KeyError, TypeError):
                complete = False
            yield from names if complete else [None] * count

    def document_provenance(self, kind: str) -> Iterator[str | None]:
        """The "license" or "source" of each document, in order; None where it is not recorded."""
        counts = np.diff(self._first_documents).tolist()
        for path, count in zip(self._paths, counts, strict=True):
            about = files.read_json(path.with_suffix(".json")).get(PROVENANCE, {}).get(kind)
            if about is None:
                yield from [None] * count
            else:
                yield from (about["values"][n] for n in about["documents"])

    def _map(self, shard: int) -> npt.NDArray[Any]:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self._paths[shard], self._dtype, mode="r")
        return self._maps[shard]

    def _mask(self, shard: int) -> npt.NDArray[np.uint8]:
        """The packed loss mask of a shard; its checksum is compared when it is first read."""
        if shard not in self._masks:
            path = self._paths[shard].with_suffix(".mask")
            try:
                data = path.read_bytes()
            except OSError as e:
                raise DataError(f"the loss mask {path} cannot be read ({e}): {_REMAKE}") from None
            if hashlib.sha256(data).hexdigest() != self._checksums[shard]:
                raise DataError(f"the checksum of the loss mask {path} does not match: {_REMAKE}")
            self._masks[shard] = np.frombuffer(data, np.uint8)
        return self._masks[shard]


class Dataset:
    """A finished data folder; `Dataset.open` opens one.

    Attributes:
        path: the folder.
        manifest: content of manifest.json: origin, counts and shards.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path, tokenizer: Tokenizer | None = None) -> "Dataset":
        """Opens a data folder and checks that it is complete.

        Args:
            path: folder that `gemmule data` wrote.
            tokenizer: tokenizer that the folder must have been made with; None: any.

        Raises:
            DataError: when the folder is missing, unfinished, damaged, of another version, or made
                with another tokenizer.
        """
        path = files.expand(path)
        if not path.is_dir():
            raise DataError(f"no data folder at {path}: make one with gemmule data")
        try:
            manifest = files.read_json(path / MANIFEST)
        except FileNotFoundError:
            raise DataError(
                f"{path} is not a finished data folder (it has no {MANIFEST}): run the gemmule data"
                " command that made it again, and it continues where it stopped"
            ) from None
        except (ValueError, OSError) as e:
            raise DataError(f"{path / MANIFEST} cannot be read ({e}): make it again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(f"{path} was made by another version of gemmule: make it again")
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
                sizes = [
                    (file, shard["tokens"] * width),
                    (file.with_suffix(".offsets"), shard["documents"] * OFFSET_TYPE.itemsize),
                ]
                if MASK_CHECKSUM in shard:
                    sizes.append((file.with_suffix(".mask"), mask_bytes(shard["tokens"])))
                for part, expected in sizes:
                    size = part.stat().st_size if part.is_file() else None
                    if size != expected:
                        problem = "is missing" if size is None else f"has {size} bytes"
                        raise DataError(
                            f"{part} {problem}, the manifest says {expected}: {_REMAKE}"
                        )

    @property
    def _dtype(self) -> np.dtype[Any]:
        return token_type(self.manifest["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens and loss masks of every split: equal text, order and tokenizer."""
        return str(self.manifest["fingerprint"])

    @property
    def name(self) -> str:
        """Name of the corpus on a model card."""
        return str(self.manifest["name"])

    @property
    def licence(self) -> str:
        """License of the corpus, as far as it is known."""
        return str(self.manifest["licence"])

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the folder, from its own copy."""
        return Tokenizer.load(self.path / "tokenizer")

    def split(self, name: str) -> Split:
        """The split "train", "validation" or "heldout".

        Raises:
            DataError: for another name.
        """
        splits = self.manifest["splits"]
        if name not in splits:
            raise DataError(f"no split {name!r}: a dataset has {', '.join(splits)}")
        whole = bool(self.manifest.get(WHOLE_DOCUMENTS))
        return Split(name, self.path, splits[name], self._dtype, whole)
