"""The third phase: clusters of near-duplicates, the split of each document, and the list of shards.

It is done by one process, with 8 bytes of memory for each document (its cluster) and files of 8 and
of 1 byte for each. What it writes:

    splits.bin        one byte for each document: index of its split, or what it is dropped as
    documents.json    totals, examples of duplicates, and the shards: documents of one split in a
                      range of document numbers
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmule import files
from gemmule.data.corpus import SPLITS, assign_splits
from gemmule.data.near_duplicates import join, resolve
from gemmule.data.recipe.chunks import Chunk
from gemmule.data.recipe.funnel import MOST_EXAMPLES, excerpt, size
from gemmule.data.recipe.links import EXACT, link_units, links_digest, read_links
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.shard_list import shard_list
from gemmule.data.recipe.work import Work, finished, is_finished, sha256_of

KINDS = {254: "duplicate", 255: "near-duplicate"}  # in splits.bin, and reasons of the funnel
DUPLICATE, NEAR_DUPLICATE = KINDS
_FOLDER = "documents"
_AT_ONCE = 2**20

Splits = npt.NDArray[np.uint8]


def read_documents(work: Work) -> tuple[dict[str, Any], Splits]:
    """The record of this phase, and the split of each document.

    Raises:
        DataError: when it is not done.
    """
    folder = work.folder / _FOLDER
    record = finished(folder / "documents.json")
    count = record["documents"]
    splits = np.memmap(folder / "splits.bin", np.uint8, "r") if count else np.empty(0, np.uint8)
    return record, splits[:count]


def assign_documents(work: Work) -> None:
    """Writes the split of each document and the list of shards, unless they are there.

    Raises:
        DataError: when a result of an earlier phase is missing or damaged.
    """
    folder = work.folder / _FOLDER
    settings = f"{work.recipe.near_duplicates!r} {work.recipe.split!r}"
    inputs = sha256_of(work.chunks_digest(), links_digest(work), settings)
    if is_finished(folder / "documents.json", inputs):
        return
    folder.mkdir(parents=True, exist_ok=True)
    chunks = work.chunks()
    count = sum(chunk.documents for chunk in chunks)
    with files.atomic_path(folder / "splits.bin") as tmp:
        on_disk = np.memmap(tmp, np.uint8, "w+", shape=(max(count, 1),))
        split_of: Splits = on_disk[:count]
        clusters = _Clusters(work, chunks, split_of, folder)
        examples = clusters.examples() if count else []
        _split(work.recipe, clusters, split_of)
        clusters.close()
        on_disk.flush()
    record = {
        "inputs": inputs,
        "documents": count,
        "near_duplicates": clusters.grouped,
        "fingerprint": _fingerprint(chunks, split_of),
        "totals": _totals(chunks, split_of),
        "examples": examples,
        **shard_list(chunks, split_of),
    }
    files.write_json(folder / "documents.json", record)


class _Clusters:
    """Clusters of near-duplicates; what is to be dropped is marked in `split_of`.

    Attributes:
        cluster_of: number of the first document in each document's cluster.
        smallest: for each cluster, by its number, the smallest hash of a document in it.
        grouped: number of documents with a near-duplicate; None: they were not looked for.
    """

    def __init__(self, work: Work, chunks: Sequence[Chunk], split_of: Splits, folder: Path) -> None:
        self._chunks, self._split_of = chunks, split_of
        count = len(split_of)
        self.cluster_of = np.arange(count)
        for pairs in read_links(work, EXACT):
            join(self.cluster_of, pairs)
        resolve(self.cluster_of)
        for block in blocks(count):
            first = self.cluster_of[block] == np.arange(block.start, block.stop)
            split_of[block] = np.where(first, 0, DUPLICATE)
        for name in link_units(work)[1:]:
            for pairs in read_links(work, name):
                join(self.cluster_of, pairs)
        resolve(self.cluster_of)
        self._scratch = [folder / f".{name}.0.tmp" for name in ("smallest", "sizes")]
        self.smallest = np.memmap(self._scratch[0], np.uint64, "w+", shape=(max(count, 1),))
        self.smallest[:] = np.uint64(2**64 - 1)
        sizes = np.memmap(self._scratch[1], np.uint8, "w+", shape=(max(count, 1),))
        for chunk in chunks:
            kept = split_of[chunk.slice] != DUPLICATE
            clusters = self.cluster_of[chunk.slice][kept]
            np.minimum.at(self.smallest, clusters, chunk.contents()[kept, 0])
            unique, several = np.unique(clusters, return_counts=True)
            sizes[unique] = np.minimum(sizes[unique] + several, 2)  # 2: two or more
        action, grouped = work.recipe.near_duplicates.action, 0
        for chunk in chunks:
            own, clusters = split_of[chunk.slice], self.cluster_of[chunk.slice]
            kept = own != DUPLICATE
            grouped += int(((sizes[clusters] > 1) & kept).sum())
            if action == "drop":
                own[kept & ~self._representative(chunk)] = NEAR_DUPLICATE
        self.grouped = None if action == "ignore" else grouped

    def _representative(self, chunk: Chunk) -> npt.NDArray[np.bool_]:
        """Which documents of a chunk have the smallest hash of their cluster."""
        smallest = self.smallest[self.cluster_of[chunk.slice]]
        return np.asarray(chunk.contents()[:, 0] == smallest)

    def examples(self) -> list[dict[str, Any]]:
        """A few documents of each kind that are dropped, with the one that stays for them."""
        chosen: list[tuple[int, int, str]] = []  # hash, document, reason
        for kind, reason in KINDS.items():
            rows: list[tuple[int, int, str]] = []
            for chunk in self._chunks:
                places = np.flatnonzero(self._split_of[chunk.slice] == kind)
                hashes = chunk.contents()[places, 0].tolist()
                numbers = (places + chunk.first).tolist()
                named = zip(hashes, numbers, [reason] * len(numbers), strict=True)
                rows = heapq.nsmallest(MOST_EXAMPLES, [*rows, *named])
            chosen += rows
        wanted = np.unique(self.cluster_of[[document for _, document, _ in chosen]])
        stays = self._names_of_representatives(wanted)
        examples = []
        for chunk in self._chunks:
            own = [row for row in chosen if 0 <= row[1] - chunk.first < chunk.documents]
            documents = chunk.read() if own else []
            for smallest, number, reason in own:
                document = documents[number - chunk.first]
                examples.append(
                    {
                        "digest": f"{smallest:016x}",
                        "stage": "near_duplicates",
                        "reason": reason,
                        "key": document.key,
                        "bytes": size(document.text),
                        "excerpt": excerpt(document.text),
                        "like": stays[int(self.cluster_of[number])],
                    }
                )
        return sorted(examples, key=lambda example: (example["reason"], example["digest"]))

    def _names_of_representatives(self, wanted: npt.NDArray[np.int64]) -> dict[int, str]:
        names: dict[int, str] = {}
        for chunk in self._chunks:
            clusters = self.cluster_of[chunk.slice]
            places = np.flatnonzero(np.isin(clusters, wanted) & self._representative(chunk))
            own = chunk.names() if len(places) else []
            for place in places.tolist():
                names.setdefault(int(clusters[place]), own[place])
        return names

    def close(self) -> None:
        """Removes the files that are needed no more."""
        for path in self._scratch:
            path.unlink()


def blocks(count: int) -> Iterator[slice]:
    """Slices of about a million documents."""
    return (slice(n, min(n + _AT_ONCE, count)) for n in range(0, count, _AT_ONCE))


def _split(recipe: Recipe, clusters: _Clusters, split_of: Splits) -> None:
    """Replaces the mark of each kept document by its split: that of its cluster's smallest hash."""
    validation, heldout = recipe.split.validation, recipe.split.heldout
    counts = np.zeros(len(SPLITS), np.int64)
    for block in blocks(len(split_of)):
        kept = np.flatnonzero(split_of[block] < len(SPLITS)) + block.start
        positions = clusters.smallest[clusters.cluster_of[kept]] / 2**64
        splits = np.zeros(len(kept), np.uint8)
        splits[positions < heldout + validation] = SPLITS.index("validation")
        splits[positions < heldout] = SPLITS.index("heldout")
        split_of[kept] = splits
        counts += np.bincount(splits, minlength=len(SPLITS))
    if not counts.all():  # a small corpus: the nearest documents fill an empty split
        kept = np.flatnonzero(split_of < len(SPLITS))
        if len(kept) >= len(SPLITS):
            positions = clusters.smallest[clusters.cluster_of[kept]] / 2**64
            split_of[kept] = assign_splits(positions, validation, heldout)


def _fingerprint(chunks: Sequence[Chunk], split_of: Splits) -> str:
    """SHA-256 over the content and the split of each document."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk.array("contents").tobytes() + split_of[chunk.slice].tobytes())
    return digest.hexdigest()


def _totals(chunks: Sequence[Chunk], split_of: Splits) -> dict[str, dict[str, list[int]]]:
    """Documents and bytes of each source, by split and by what they were dropped as."""
    sums: dict[str, npt.NDArray[np.int64]] = {}
    for chunk in chunks:
        own = split_of[chunk.slice]
        total = sums.setdefault(chunk.source, np.zeros((256, 2), np.int64))
        total[:, 0] += np.bincount(own, minlength=256)
        total[:, 1] += np.bincount(own, chunk.sizes(), minlength=256).astype(np.int64)
    names = {**dict(enumerate(SPLITS)), **KINDS}
    return {
        source: {name: total[kind].tolist() for kind, name in names.items()}
        for source, total in sums.items()
    }
