"""The second phase: which documents share a key, found by sorting on disk.

There is a unit for exact duplicates, whose key is the hash of the content, and one for each band of
MinHash (minhash.py). A unit writes pairs of document numbers, each document of a key with the one
before it: as many as connect all of them.
"""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.minhash import BANDS
from gemmule.data.recipe.chunks import Chunk
from gemmule.data.recipe.sorting import RUN_BYTES, Entries, SortedRuns
from gemmule.data.recipe.work import Work, finished, is_finished, sha256_of
from gemmule.errors import DataError

EXACT = "exact"
_PAIR = np.dtype("<i8")
_PAIRS_AT_ONCE = 2**18


def link_units(work: Work) -> list[str]:
    """Names of the phase's units."""
    if work.recipe.near_duplicates.action == "ignore":
        return [EXACT]
    return [EXACT, *(f"band-{band:02d}" for band in range(BANDS))]


def find_links(work: Work, names: list[str], run_bytes: int = RUN_BYTES) -> None:
    """Writes the links of units that are not done yet.

    Args:
        work: the recipe at work, whose chunks are all there.
        names: units, from `link_units`.
        run_bytes: memory for sorting, bytes.

    Raises:
        DataError: when a chunk is damaged.
    """
    inputs = work.chunks_digest()
    chunks = work.chunks()
    for name in names:
        record = _record(work, name)
        if not is_finished(record, inputs):
            _find(chunks, name, record, inputs, run_bytes)


def read_links(work: Work, name: str) -> Iterator[npt.NDArray[np.int64]]:
    """Blocks of the pairs [N, 2] of a unit.

    Raises:
        DataError: when the unit is not done, or its file is damaged.
    """
    path = _record(work, name)
    record = finished(path)
    digest = hashlib.sha256()
    with path.with_suffix(".pairs").open("rb") as f:
        while data := f.read(_PAIRS_AT_ONCE * 2 * _PAIR.itemsize):
            digest.update(data)
            yield np.frombuffer(data, _PAIR).reshape(-1, 2)
    if digest.hexdigest() != record["sha256"]:
        raise DataError(f"{path.with_suffix('.pairs')} is damaged: delete {path.parent}")


def _record(work: Work, name: str) -> Path:
    return work.folder / "links" / f"{name}.json"


def _find(chunks: list[Chunk], name: str, record: Path, inputs: str, run_bytes: int) -> None:
    folder = record.with_suffix(".runs")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs = SortedRuns(folder, run_bytes)
    for chunk in chunks:
        numbers = np.arange(chunk.first, chunk.first + chunk.documents)
        if name == EXACT:
            chunk.verify()  # once for all units
            contents = chunk.contents()
            runs.add(contents[:, 0], contents[:, 1], numbers)
        else:
            keys = chunk.array("bands")[:, int(name.rpartition("-")[2])]
            some = keys != 0  # 0: too few words
            runs.add(keys[some], np.zeros(int(some.sum()), np.uint64), numbers[some])
    count, digest = 0, hashlib.sha256()
    with files.atomic_path(record.with_suffix(".pairs")) as tmp, tmp.open("wb") as f:
        for pairs in pairs_of(runs.blocks()):
            data = pairs.astype(_PAIR).tobytes()
            f.write(data)
            digest.update(data)
            count += len(pairs)
    runs.close()
    files.write_json(record, {"inputs": inputs, "pairs": count, "sha256": digest.hexdigest()})
    folder.rmdir()


def pairs_of(blocks: Iterator[Entries]) -> Iterator[npt.NDArray[np.int64]]:
    """Pairs [N, 2] of documents with the same key and second number, from sorted blocks."""
    before: Entries | None = None
    for block in blocks:
        joined = block if before is None else np.concatenate([before, block])
        same = joined["key"][1:] == joined["key"][:-1]
        same &= joined["second"][1:] == joined["second"][:-1]
        places = np.flatnonzero(same)
        documents = joined["document"]
        yield np.stack([documents[places], documents[places + 1]], axis=1)
        before = joined[-1:]


def links_digest(work: Work) -> str:
    """SHA-256 over all links."""
    return sha256_of(*(finished(_record(work, name))["sha256"] for name in link_units(work)))
