"""Writing one shard of tokens, and recognizing a finished one."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.dataset import (
    MASK_CHECKSUM,
    NAMES,
    OFFSET_TYPE,
    PROVENANCE,
    TOKENS_BY,
    token_type,
)
from gemmule.data.sources import Document
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer

NOTHING: Mapping[str, Sequence[str]] = {}


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to make: consecutive documents of a split.

    Attributes:
        split: name of the split.
        index: number of the shard within the split.
        documents: the documents.
        licence: license of documents that do not say their own, in a corpus where some do; None:
            in this corpus none does.
    """

    split: str
    index: int
    documents: Sequence[Document]
    licence: str | None = None

    @property
    def file(self) -> str:
        """The token file, relative to the data folder."""
        return f"shards/{self.split}-{self.index:05d}.tokens"

    @property
    def names(self) -> list[str]:
        """Origin of each document."""
        return [document.key for document in self.documents]

    @property
    def provenance(self) -> dict[str, list[str]]:
        """What is known of each document besides: its license and its source, if any has one."""
        known = {}
        if self.licence is not None:
            known["license"] = [document.licence or self.licence for document in self.documents]
        if any(document.source for document in self.documents):
            known["source"] = [document.source for document in self.documents]
        return known


def make_shard(job: ShardJob, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Tokenizes and writes a shard, unless it is there already.

    The shard's .json is written after its data and holds their checksums and the documents' names:
    a shard without one, or whose data do not match it, is made again.

    Returns:
        The shard's manifest entry.
    """
    path = folder / job.file
    text_bytes = [document.text.encode() for document in job.documents]
    digest = hashlib.sha256(b"\0".join(text_bytes))
    for document in job.documents:
        if document.ids is not None:
            digest.update(document.ids.astype(OFFSET_TYPE).tobytes())
    text_digest = digest.hexdigest()
    about = _about(job.names, job.provenance)
    done = _finished(path, path.with_suffix(".json"), text_digest, about)
    if done is not None:
        return done
    # As arrays: Python's integers of a whole shard would take half a gigabyte.
    kind = token_type(tokenizer.vocab_size)
    documents = [np.array(_ids(document, tokenizer), kind) for document in job.documents]
    facts = {"bytes": sum(map(len, text_bytes)), "text_sha256": text_digest}
    return write_shard(
        folder, job.file, documents, job.names, facts, tokenizer.vocab_size,
        provenance=job.provenance,
    )  # fmt: skip


def _ids(document: Document, tokenizer: Tokenizer) -> list[int]:
    if document.ids is None:
        return [*tokenizer.encode(document.text, bos=True), tokenizer.eos_id]
    return [tokenizer.bos_id, *document.ids.tolist(), tokenizer.eos_id]


def write_shard(
    folder: Path,
    file: str,
    documents: Sequence[Sequence[int] | npt.NDArray[Any]],
    names: Sequence[str],
    facts: dict[str, Any],
    vocab_size: int,
    masks: Sequence[Sequence[bool]] | None = None,
    provenance: Mapping[str, Sequence[str]] = NOTHING,
) -> dict[str, Any]:
    """Writes documents of ids as one shard.

    Args:
        folder: the data folder.
        file: the token file, relative to the folder.
        documents: ids of each document, <bos> and <eos> included.
        names: origin of each document.
        facts: the entry's values about the text: "bytes" and "text_sha256".
        vocab_size: number of ids, which decides the type of the tokens.
        masks: loss mask of each document, one value per id: whether the id is a label. None: no
            mask file; every id is a label.
        provenance: by kind ("license", "source"), a value for each document.

    Returns:
        The shard's manifest entry.

    Raises:
        DataError: when a mask does not have one value per id.
    """
    if masks is not None and list(map(len, masks)) != list(map(len, documents)):
        raise DataError(f"the loss masks of {file} do not have one value for each id")
    path = folder / file
    lengths = np.array([len(ids) for ids in documents], OFFSET_TYPE)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(OFFSET_TYPE)
    tokens = np.concatenate([np.array(ids, token_type(vocab_size)) for ids in documents])
    with files.atomic_path(path) as tmp:
        tokens.tofile(tmp)
    with files.atomic_path(path.with_suffix(".offsets")) as tmp:
        offsets.tofile(tmp)
    entry = {
        "file": file,
        "tokens": len(tokens),
        "documents": len(documents),
        "bytes": facts["bytes"],
        "sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "offsets_sha256": hashlib.sha256(offsets.tobytes()).hexdigest(),
        "text_sha256": facts["text_sha256"],
    }
    if masks is not None:
        mask = np.concatenate([np.array(values, np.bool_) for values in masks])
        packed = np.packbits(mask, bitorder="little")
        with files.atomic_path(path.with_suffix(".mask")) as tmp:
            packed.tofile(tmp)
        entry[MASK_CHECKSUM] = hashlib.sha256(packed.tobytes()).hexdigest()
    if provenance:
        entry[TOKENS_BY] = {
            kind: _sums(values, lengths.tolist()) for kind, values in provenance.items()
        }
    files.write_json(path.with_suffix(".json"), {**entry, **_about(names, provenance)})
    return entry


def _sums(values: Sequence[str], lengths: Sequence[int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for value, length in zip(values, lengths, strict=True):
        sums[value] = sums.get(value, 0) + length
    return dict(sorted(sums.items()))


def _about(names: Sequence[str], provenance: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What a shard's .json says of each document."""
    about: dict[str, Any] = {NAMES: list(names)}
    for kind, of_documents in provenance.items():
        values = sorted(set(of_documents))
        number = {value: n for n, value in enumerate(values)}
        indices = [number[value] for value in of_documents]
        about.setdefault(PROVENANCE, {})[kind] = {"values": values, "documents": indices}
    return about


def is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a shard's tokens and offsets have the checksums of its entry.

    Raises:
        OSError: when a file cannot be read.
        KeyError: when the entry has no checksums.
    """
    return bool(
        files.sha256_file(path) == entry["sha256"]
        and files.sha256_file(path.with_suffix(".offsets")) == entry["offsets_sha256"]
    )


def _finished(
    path: Path, record: Path, text_digest: str, about: dict[str, Any]
) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = files.read_json(record)
        finished = (
            entry["text_sha256"] == text_digest
            and MASK_CHECKSUM not in entry  # text alone has no mask
            and {key: entry.pop(key) for key in (NAMES, PROVENANCE) if key in entry} == about
            and is_whole(path, entry)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if finished else None
