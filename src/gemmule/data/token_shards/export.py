"""Writes a data folder as datatrove's token files, one per split and shard."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from gemmule import files
from gemmule.data.dataset import Dataset, Split
from gemmule.data.token_shards.token_file import INDEX_TYPE, id_bytes
from gemmule.errors import DataError, OutputError
from gemmule.runs.lock import is_lock, locked

RECORD = "export.json"  # what was exported, with checksums; written last
_BLOCK = 1 << 22  # tokens in memory at a time


def export_datatrove(dataset: Dataset, out: Path) -> dict[str, Any]:
    """Writes each split of a data folder into a folder of .ds, .ds.index and .ds.metadata.

    Documents are <bos> ids <eos>, in the data folder's order; ids have 2 bytes, or 4 with a
    vocabulary of more than 65,536, as in datatrove. What was written is read again and compared.

    Args:
        dataset: data without loss masks.
        out: a new folder, or one with the same data.

    Returns:
        The files of each split with tokens, documents and SHA-256, as export.json has them.

    Raises:
        DataError: when the data have a loss mask, which these files do not keep.
        OutputError: when `out` holds something else, or what was written is not what was meant.
    """
    if any(dataset.split(name).has_mask for name in dataset.manifest["splits"]):
        raise DataError(
            f"{dataset.path} has a loss mask, which token files would lose: export data of text"
        )
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if (out / RECORD).is_file():
            about: dict[str, Any] = files.read_json(out / RECORD)
            if about.get("fingerprint") != dataset.fingerprint:
                raise OutputError(f"{out} holds tokens of other data: choose another folder")
            return about
        _check_free(dataset, out)
        splits = {}
        for name in dataset.manifest["splits"]:
            with files.writing_to(out):
                (out / name).mkdir(exist_ok=True)
            splits[name] = [_write(dataset, dataset.split(name), out / name / f"00000_{name}.ds")]
        about = {
            "format": "datatrove .ds",
            "name": dataset.name,
            "licence": dataset.licence,
            "fingerprint": dataset.fingerprint,
            "tokenizer": dataset.manifest["tokenizer"],
            "splits": splits,
        }
        files.write_json(out / RECORD, about)
    return about


def _check_free(dataset: Dataset, out: Path) -> None:
    """Refuses a folder with anything but the splits that a stopped export has begun."""
    mine = set(dataset.manifest["splits"])
    others = [e.name for e in out.iterdir() if e.name not in mine and not is_lock(e)]
    others = [name for name in others if not name.endswith(".tmp")]
    if others:
        raise OutputError(f"{out} is in use (it holds {others[0]}): choose an empty or new folder")


def _write(dataset: Dataset, split: Split, path: Path) -> dict[str, Any]:
    width = id_bytes(dataset.manifest["vocab_size"])
    dtype = np.dtype(f"<u{width}")
    digest = hashlib.sha256()
    with files.atomic_path(path) as tmp, tmp.open("wb") as f:
        for start in range(0, split.token_count, _BLOCK):
            block = split.read(start, start + _BLOCK).astype(dtype).tobytes()
            digest.update(block)
            f.write(block)
    ends = np.append(split.document_starts()[1:], split.token_count).astype(INDEX_TYPE)
    with files.atomic_path(path.with_name(f"{path.name}.index")) as tmp:
        ends.tofile(tmp)
    metadata = f"{dataset.path.name}/tokenizer|{width}\n{split.token_count}\n"
    files.write_text(path.with_name(f"{path.name}.metadata"), metadata)
    written = files.sha256_file(path)
    if written != digest.hexdigest():
        raise OutputError(f"{path} does not hold what was written to it: the disk is failing")
    return {
        "file": f"{path.parent.name}/{path.name}",
        "tokens": split.token_count,
        "documents": split.document_count,
        "token_bytes": width,
        "sha256": written,
    }
