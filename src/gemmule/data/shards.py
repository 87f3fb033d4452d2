"""Writing one shard of tokens, and knowing later whether it is whole."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmule import files
from gemmule.data.dataset import NAMES, OFFSET_TYPE, token_type
from gemmule.model.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """One shard to make: some consecutive documents of a split, and where each came from."""

    split: str
    index: int
    texts: Sequence[str]
    names: Sequence[str]

    @property
    def file(self) -> str:
        """The token file, relative to the data folder."""
        return f"shards/{self.split}-{self.index:05d}.tokens"


def make_shard(job: ShardJob, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """Tokenises and writes a shard, unless a whole one is there already.

    The .json beside a shard is written after its data and holds their checksums and the documents'
    names: a shard without one, or whose data disagree with it, is made again.

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
) -> dict[str, Any]:
    """Writes documents of ids as one shard.

    Args:
        folder: the data folder.
        file: the token file, relative to it.
        documents: ids, <bos> and <eos> included.
        names: where each came from.
        facts: what the entry says of their text: "bytes" and "text_sha256".
        vocab_size: decides the type of the tokens.

    Returns:
        The shard's manifest entry.
    """
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
    files.write_json(path.with_suffix(".json"), {**entry, NAMES: list(names)})
    return entry


def _finished(
    path: Path, record: Path, text_digest: str, names: list[str]
) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = files.read_json(record)
        whole = (
            entry["text_sha256"] == text_digest
            and entry.pop(NAMES) == names
            and files.sha256_file(path) == entry["sha256"]
            and files.sha256_file(path.with_suffix(".offsets")) == entry["offsets_sha256"]
        )
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return None
    return entry if whole else None
