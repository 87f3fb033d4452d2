"""Writing one shard of tokens, and recognizing a finished one."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmule import files
from gemmule.data.dataset import MASK_CHECKSUM, NAMES, OFFSET_TYPE, token_type
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to make: consecutive documents of a split.

    Attributes:
        split: name of the split.
        index: number of the shard within the split.
        texts: text of each document.
        names: origin of each document.
    """

    split: str
    index: int
    texts: Sequence[str]
    names: Sequence[str]

    @property
    def file(self) -> str:
        """The token file, relative to the data folder."""
        return f"shards/{self.split}-{self.index:05d}.tokens"


def make_shard(job: ShardJob, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Tokenizes and writes a shard, unless it is there already.

    The shard's .json is written after its data and holds their checksums and the documents' names:
    a shard without one, or whose data do not match it, is made again.

    Returns:
        The shard's manifest entry.
    """
    path = folder / job.file
    text_bytes = [text.encode() for text in job.texts]
    text_digest = hashlib.sha256(b"\0".join(text_bytes)).hexdigest()
    record = path.with_suffix(".json")
    done = _finished(path, record, text_digest, list(job.names))
    if done is not None:
        return done
    eos = [tokenizer.eos_id]
    documents = [tokenizer.encode(text, bos=True) + eos for text in job.texts]
    facts = {"bytes": sum(map(len, text_bytes)), "text_sha256": text_digest}
    return write_shard(folder, job.file, documents, job.names, facts, tokenizer.vocab_size)


def write_shard(
    folder: Path,
    file: str,
    documents: Sequence[Sequence[int]],
    names: Sequence[str],
    facts: dict[str, Any],
    vocab_size: int,
    masks: Sequence[Sequence[bool]] | None = None,
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
    files.write_json(path.with_suffix(".json"), {**entry, NAMES: list(names)})
    return entry


def _finished(
    path: Path, record: Path, text_digest: str, names: list[str]
) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = files.read_json(record)
        finished = (
            entry["text_sha256"] == text_digest
            and MASK_CHECKSUM not in entry  # text alone has no mask
            and entry.pop(NAMES) == names
            and files.sha256_file(path) == entry["sha256"]
            and files.sha256_file(path.with_suffix(".offsets")) == entry["offsets_sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if finished else None
