"""Chunks: consecutive documents of a source that went through the stages together.

A chunk is the unit of parallel work and of resuming: about 8 MB of text, cut where the documents
as read say so, whatever the stages do with them. It is two files: a safetensors file with the text
that passed, and a JSON record, written after it, with names, funnel and checksums.

Shapes: D documents, B bands of MinHash.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.corpus import digest_of, why_unusable
from gemmule.data.minhash import BandKeys
from gemmule.data.recipe.funnel import Tally
from gemmule.data.recipe.stage import Outcome, Stage, dropped
from gemmule.data.sources import Document
from gemmule.errors import DataError

CHARACTERS = 8 * 1024 * 1024  # of a chunk, before its last document
READ = "read"  # the stage that drops what cannot be used


@dataclasses.dataclass(frozen=True)
class ChunkJob:
    """A chunk to make.

    Attributes:
        path: the file to write, without a suffix.
        documents: the documents as read.
        settings: digest of whatever the stages' outcomes depend on.
        near_duplicates: whether keys to find near-duplicates are computed.
    """

    path: Path
    documents: Sequence[Document]
    settings: str
    near_duplicates: bool


def make_chunk(job: ChunkJob, stages: Sequence[Stage]) -> str:
    """Applies the stages to a chunk's documents and writes what passes, unless it is there already.

    Returns:
        The SHA-256 of the chunk's record, which covers everything in it.
    """
    inputs = _digest(job)
    record_path = job.path.with_suffix(".json")
    known = _known(record_path)
    if known is not None and known["inputs"] == inputs and _is_whole(job.path, known):
        return files.sha256_file(record_path)
    tally = Tally()
    tally.read(job.documents)
    documents = tally.stage(READ, job.documents, [_as_read(d) for d in job.documents])
    for stage in stages:
        documents = tally.stage(stage.name, documents, stage.apply_batch(documents))
    tally.lengths(documents)
    texts = [document.text.encode() for document in documents]
    arrays: dict[str, npt.NDArray[Any]] = {
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "characters": np.array([len(document.text) for document in documents], np.int64),
        "contents": np.frombuffer(b"".join(digest_of(d.text) for d in documents), np.uint8).reshape(
            -1, 16
        ),
    }
    if job.near_duplicates:
        keys = BandKeys()
        for document in documents:
            keys.add(document.text)
        arrays["bands"] = keys.keys()
    from safetensors.numpy import save_file

    with files.atomic_path(job.path.with_suffix(".safetensors")) as tmp:
        save_file(arrays, tmp)
        checksum = files.sha256_file(tmp)
    record = {
        "inputs": inputs,
        "sha256": checksum,
        "documents": len(documents),
        "bytes": sum(map(len, texts)),
        "names": [document.key for document in documents],
        "licenses": [document.licence for document in documents],
        "funnel": tally.funnel,
        "examples": tally.examples(),
    }
    files.write_json(record_path, record)
    return files.sha256_file(record_path)


def _as_read(document: Document) -> Outcome:
    reason = why_unusable(document.text)
    return Outcome(document.text) if reason is None else dropped(reason)


def _digest(job: ChunkJob) -> str:
    digest = hashlib.sha256(json.dumps([job.settings, job.near_duplicates]).encode())
    for document in job.documents:
        for part in (document.source, document.key, document.licence or "", document.text):
            data = part.encode(errors="surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _known(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        record = files.read_json(path)
        if isinstance(record, dict) and {"inputs", "sha256"} <= record.keys():
            return record
    return None


def _is_whole(path: Path, record: dict[str, Any]) -> bool:
    try:
        return files.sha256_file(path.with_suffix(".safetensors")) == record["sha256"]
    except OSError:
        return False


class Chunk:
    """A finished chunk.

    Attributes:
        path: its path without a suffix.
        source: name of the source of its documents.
        documents: number of documents in it.
        first: number of its first document in the whole corpus.
    """

    def __init__(self, path: Path, source: str, documents: int, first: int) -> None:
        self.path, self.source, self.documents, self.first = path, source, documents, first

    @property
    def slice(self) -> slice:
        """Where its documents are in an array over all."""
        return slice(self.first, self.first + self.documents)

    def record(self) -> dict[str, Any]:
        """Its record."""
        return files.read_object(self.path.with_suffix(".json"), DataError)

    def array(self, name: str) -> npt.NDArray[Any]:
        """One of "text", "ends" [D], "characters" [D], "contents" [D, 16] or "bands" [D, B].

        Raises:
            DataError: when the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path.with_suffix(".safetensors")
        try:
            with safe_open(path, framework="numpy") as f:
                return np.asarray(f.get_tensor(name))
        except (OSError, SafetensorError) as e:
            raise DataError(
                f"{path} is damaged ({e}): delete {path.parent} and run the same again"
            ) from None

    def contents(self) -> npt.NDArray[np.uint64]:
        """The two halves of each document's content hash, big-endian as numbers, [D, 2]."""
        halves = np.ascontiguousarray(self.array("contents")).view(">u8")
        return halves.reshape(-1, 2).astype(np.uint64)

    def names(self) -> list[str]:
        """Where its documents came from, their source first."""
        return self._named(self.record())

    def _named(self, record: dict[str, Any]) -> list[str]:
        return [f"{self.source}/{name}" for name in record["names"]]

    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each document [D]."""
        return np.diff(self.array("ends"), prepend=0)

    def read(self) -> list[Document]:
        """The documents; the names begin with their source."""
        text, ends = self.array("text").tobytes(), self.array("ends").tolist()
        record = self.record()
        rows = zip([0, *ends], ends, self._named(record), record["licenses"], strict=False)
        return [
            Document(name, text[start:end].decode(), source=self.source, licence=licence)
            for start, end, name, licence in rows
        ]

    def verify(self) -> None:
        """Compares the file with its checksum.

        Raises:
            DataError: when it does not match.
        """
        if not _is_whole(self.path, self.record()):
            raise DataError(
                f"{self.path}.safetensors does not match its checksum: check the disk, delete "
                f"{self.path.parent} and run the same again"
            )
