"""The fourth phase: kept documents are tokenized into shards, a shard at a time in each thread."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gemmule import files
from gemmule.console import Progress
from gemmule.data.corpus import SPLITS
from gemmule.data.dataset import NAMES, PROVENANCE
from gemmule.data.recipe.chunks import Chunk
from gemmule.data.recipe.documents import Splits, read_documents
from gemmule.data.recipe.work import Work
from gemmule.data.shards import ShardJob, is_whole, make_shard
from gemmule.data.sources import Document
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer


def make_shards(
    work: Work,
    tokenizer: Tokenizer,
    rank: int,
    tasks: int,
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Writes the shards rank, rank + tasks, …, unless they are there.

    Args:
        work: the recipe at work, whose documents are assigned.
        tokenizer: the tokenizer.
        rank: number of this process.
        tasks: number of processes.
        workers: number of threads.
        progress: called with the bytes of text tokenized, their sum, and "bytes of text".

    Raises:
        DataError: when a chunk is damaged.
    """
    record, split_of = read_documents(work)
    shards = record["shards"][rank::tasks]
    total, done = sum(shard["bytes"] for shard in shards), 0
    chunks = work.chunks()
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="tokenize")
    waiting: collections.deque[tuple[dict[str, Any], concurrent.futures.Future[None]]]
    waiting = collections.deque()

    def collect() -> None:
        nonlocal done
        shard, future = waiting.popleft()
        future.result()
        done += shard["bytes"]
        if progress:
            progress(done, total, "bytes of text")

    try:
        for shard in shards:
            waiting.append((shard, pool.submit(_make, shard, chunks, split_of, tokenizer, work)))
            while len(waiting) > workers:
                collect()
        while waiting:
            collect()
    finally:
        pool.shutdown(cancel_futures=True)


def _make(
    shard: dict[str, Any],
    chunks: Sequence[Chunk],
    split_of: Splits,
    tokenizer: Tokenizer,
    work: Work,
) -> None:
    documents = list(_documents(shard, chunks, split_of, work))
    if len(documents) != shard["documents"]:
        raise DataError(
            f"{work.folder} has {len(documents)} documents for a shard of {shard['documents']}: "
            "delete it and run the same again"
        )
    job = ShardJob(shard["split"], shard["index"], documents, _licence_of_the_rest(work))
    make_shard(job, tokenizer, work.out)


def _licence_of_the_rest(work: Work) -> str | None:
    """License of documents that have none, where some have."""
    stated = any(s.license or s.license_field for s in work.recipe.sources)
    return "not stated" if stated else None


def _documents(
    shard: dict[str, Any], chunks: Sequence[Chunk], split_of: Splits, work: Work
) -> Iterator[Document]:
    """The documents of a shard, with their source's license where they have none of their own."""
    licences = {source.name: source.license for source in work.recipe.sources}
    first, last = shard["first"], shard["last"]
    for chunk in chunks:
        if chunk.first > last or chunk.first + chunk.documents <= first:
            continue
        numbers = np.arange(chunk.first, chunk.first + chunk.documents)
        own = split_of[chunk.slice] == SPLITS.index(shard["split"])
        places = np.flatnonzero(own & (numbers >= first) & (numbers <= last)).tolist()
        documents = chunk.read() if places else []
        for place in places:
            document = documents[place]
            licence = document.licence or licences[document.source]
            yield dataclasses.replace(document, licence=licence)


def read_shards(work: Work) -> list[tuple[str, dict[str, Any]]]:
    """The finished shards, each compared with its checksums and with the list of shards.

    Returns:
        The split and the manifest entry of each shard, by split and index.

    Raises:
        DataError: when a shard is missing or is not what was written.
    """
    record, _ = read_documents(work)
    order = sorted(record["shards"], key=lambda s: (SPLITS.index(s["split"]), s["index"]))
    entries: list[tuple[str, dict[str, Any]]] = []
    for shard in order:
        path = work.out / ShardJob(shard["split"], shard["index"], ()).file
        try:
            entry = files.read_object(path.with_suffix(".json"), DataError)
            for about in (NAMES, PROVENANCE):
                entry.pop(about, None)
            whole = (
                is_whole(path, entry)
                and entry["documents"] == shard["documents"]
                and entry["bytes"] == shard["bytes"]
            )
        except (OSError, KeyError):
            whole = False
        if not whole:
            raise DataError(
                f"{path} is missing or is not what was written: check the disk, and run the same "
                "again"
            )
        entries.append((shard["split"], entry))
    return entries
