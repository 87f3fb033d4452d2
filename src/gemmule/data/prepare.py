"""Tokenizes a corpus into shards: resumable, parallel, the same for any number of workers."""

import collections
import concurrent.futures
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.console import Progress, console
from gemmule.data.corpus import SPLITS, Corpus, NearDuplicates, read_corpus
from gemmule.data.dataset import FORMAT, MANIFEST, MASK_CHECKSUM, TOKENS_BY, Dataset
from gemmule.data.read_log import ReadLog
from gemmule.data.shards import ShardJob, make_shard
from gemmule.data.sources import Document, Source, find_source
from gemmule.errors import DataError, OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.lock import is_lock, locked
from gemmule.runtime import host

PLAN, SHARDS, TOKENIZER = "plan.json", "shards", "tokenizer"
STAGE_FILES = "stage_files"  # of a recipe's plan: digests of the files that its stages name
# Shards are the unit of parallel work and of resuming: about 32 in all, within these bounds.
_MIN_SHARD_BYTES, _MAX_SHARD_BYTES = 256 * 1024, 32 * 1024 * 1024


def prepare(
    source: Path | Source | None,
    tokenizer: Tokenizer,
    out: Path,
    *,
    field: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    license_field: str | None = None,
    subset: str | None = None,
    validation: float = 0.05,
    heldout: float = 0.05,
    near_duplicates: NearDuplicates = "group",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Tokenizes a corpus into memory-mapped shards.

    If a call is interrupted, the same call continues where it stopped and gives the same bytes. A
    complete folder made from the same text with the same tokenizer is returned as it is.

    Args:
        source: a file, folder or glob pattern, or what one of the readers found; None: the embedded
            corpus.
        tokenizer: the tokenizer; a copy is kept in the folder.
        out: the folder to write.
        field: the field or column of records that holds the text; None: "text".
        name: name of the corpus in model cards; by default that of the file or folder.
        licence: license of the corpus, for the model card.
        license_field: the field or column of records that holds a document's own license.
        subset: configuration of a hub's data set, or "CONFIGURATION/SPLIT".
        validation: fraction of documents for tuning.
        heldout: fraction of documents for the final evaluation.
        near_duplicates: "group" keeps documents that are nearly the same in one split, "drop" keeps
            one of them, "ignore" does not look for them.
        workers: number of threads (SentencePiece releases the GIL); by default one per core.
        progress: called as progress(done, total, unit): unit "documents" with total 0 while the
            source is read for the first time, then unit "bytes" of tokenized text.

    Raises:
        DataError: when the source cannot be used as given.
        OutputError: when `out` cannot be written, holds something else, or is being written by
            another process.
    """
    out = Path(out)
    if workers is not None and workers < 1:
        raise DataError(f"workers {workers} is too few: use at least 1")
    if not isinstance(source, Source):
        source = find_source(source, field, name, licence, license_field, subset)
    corpus = read_corpus(
        source,
        validation,
        heldout,
        near_duplicates,
        progress=progress,
    )
    plan: dict[str, Any] = {
        "format": FORMAT,
        "source_fingerprint": corpus.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "name": corpus.source.name,
        "licence": corpus.source.licence,
        **({"license_field": source.license_field} if source.license_field else {}),
        "shard_bytes": shard_bytes(sum(corpus.byte_counts.values())),
    }
    if (out / MANIFEST).is_file() and claim(out, plan):  # complete: nothing is written
        return Dataset.open(out, tokenizer)
    with locked(out):
        if not claim(out, plan):
            tokenizer.save(out / TOKENIZER)
            for unfinished in out.rglob(".*.tmp"):  # left by a run that was killed
                unfinished.unlink()
            entries = _make_shards(
                corpus,
                tokenizer,
                out,
                shard_bytes=plan["shard_bytes"],
                workers=workers or host.usable_cores(),
                progress=progress,
            )
            files.write_json(out / MANIFEST, _manifest(corpus, tokenizer, plan, entries))
    return Dataset.open(out, tokenizer)


def sample_texts(
    source: Path | None,
    max_bytes: int = 64_000_000,
    *,
    field: str | None = None,
    validation: float = 0.05,
    heldout: float = 0.05,
    log: ReadLog | None = None,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Streams training documents to train a tokenizer on, spread evenly over the corpus.

    Validation and held-out documents are never among them, nor near-duplicates of these: pass the
    same fractions as to `prepare`.

    Args:
        source: as for `prepare`.
        max_bytes: approximate limit of the amount of text.
        field: the field or column of records that holds the text; None: "text".
        validation: fraction of documents for tuning.
        heldout: fraction of documents for the final evaluation.
        log: receives what is left out and decoded.
        progress: called as by `prepare` while the source is read for the first time.

    Raises:
        DataError: when the source cannot be used as given.
    """
    corpus = read_corpus(find_source(source, field), validation, heldout, progress=progress)
    if log is not None:
        log.update(corpus.log)
    every = max(1, -(-corpus.byte_counts["train"] // max_bytes))
    n = 0
    for split, text in corpus.texts():
        if split == "train":
            if n % every == 0:
                yield text
            n += 1


def shard_bytes(total: int) -> int:
    """Bytes of text in a shard, for `total` bytes in all."""
    return min(max(total // 32, _MIN_SHARD_BYTES), _MAX_SHARD_BYTES)


def claim(out: Path, plan: dict[str, Any], stale: Sequence[str] = (SHARDS, TOKENIZER)) -> bool:
    """Claims `out` for this plan; True if it already holds the complete result of the same plan.

    A folder that another plan of the same kind began, but did not finish, is taken over: the caller
    holds its lock.

    Args:
        out: the data folder.
        plan: what it is to be made from.
        stale: folders in it that are of no use to another plan.

    Raises:
        OutputError: when it holds something else.
    """
    with files.writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        present = {entry.name for entry in out.iterdir() if not is_lock(entry)}
    if PLAN not in present:
        if {name for name in present if not name.endswith(".tmp")}:
            raise OutputError(
                f"{out} is in use (it holds other files): choose an empty or new folder"
            )
        files.write_json(out / PLAN, plan)
        return False
    try:
        existing = files.read_json(out / PLAN)
    except ValueError:
        existing = None
    if existing == plan:
        return MANIFEST in present
    if MANIFEST in present or not isinstance(existing, dict) or _kind(existing) != _kind(plan):
        raise OutputError(
            f"{out} already holds data made from {_difference(existing, plan)}: choose another "
            "folder or delete it"
        )
    before = _difference(existing, plan)
    console.print(f"{out}: begun from {before}, not finished: taken over", style="dim")
    with files.writing_to(out):
        for name in stale:
            shutil.rmtree(out / name, ignore_errors=True)
    files.write_json(out / PLAN, plan)
    return False


def _kind(plan: Mapping[str, Any]) -> bool:
    """Whether a plan is that of a recipe."""
    return "recipe" in plan


def _difference(existing: Any, plan: dict[str, Any]) -> str:
    if not isinstance(existing, dict):
        return "something unknown"
    if existing.get("source_fingerprint") != plan["source_fingerprint"]:
        return f"other text ({existing.get('name')})"
    if existing.get("tokenizer") != plan["tokenizer"]:
        return "the same text with another tokenizer"
    before, now = existing.get(STAGE_FILES), plan.get(STAGE_FILES)
    if before and now and before.keys() == now.keys():
        for name, digest in now.items():
            if before[name] != digest:
                return f"{name} as it was before it changed"
    return "the same text with other settings"


def _make_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    out: Path,
    *,
    shard_bytes: int,
    workers: int,
    progress: Progress | None,
) -> list[tuple[str, dict[str, Any]]]:
    """Writes all shards; returns the (split, manifest entry) pairs in a fixed order."""
    total = sum(corpus.byte_counts.values())
    entries: list[tuple[str, dict[str, Any]]] = []
    waiting: collections.deque[tuple[str, concurrent.futures.Future[dict[str, Any]]]]
    waiting = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="tokenize")
    done = 0

    def collect() -> None:
        nonlocal done
        split, future = waiting.popleft()
        entry = future.result()
        entries.append((split, entry))
        done += entry["bytes"]
        if progress:
            progress(done, total, "bytes")

    try:
        for job in _jobs(corpus, shard_bytes):
            waiting.append((job.split, pool.submit(make_shard, job, tokenizer, out)))
            # Only a few shards' text is in memory at any time.
            while len(waiting) > 2 * workers:
                collect()
        while waiting:
            collect()
    finally:
        pool.shutdown(cancel_futures=True)
    return entries


def _jobs(corpus: Corpus, shard_bytes: int) -> Iterator[ShardJob]:
    """Groups documents into shards; the result depends only on the corpus."""
    waiting: dict[str, list[Document]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    counts = dict.fromkeys(SPLITS, 0)
    licence = corpus.source.licence if corpus.log.licensed else None

    def take(split: str) -> ShardJob:
        job = ShardJob(split, counts[split], waiting[split], licence)
        waiting[split], sizes[split] = [], 0
        counts[split] += 1
        return job

    for split, document in corpus.kept():
        waiting[split].append(document)
        sizes[split] += len(document.text)
        if sizes[split] >= shard_bytes:
            yield take(split)
    for split in SPLITS:
        if waiting[split]:
            yield take(split)


def _manifest(
    corpus: Corpus,
    tokenizer: Tokenizer,
    plan: dict[str, Any],
    entries: list[tuple[str, dict[str, Any]]],
) -> dict[str, Any]:
    splits = {}
    for name in SPLITS:
        splits[name] = describe_split([entry for split, entry in entries if split == name])
    return {
        **plan,
        "fingerprint": fingerprint_of(splits, tokenizer),
        "source": corpus.source.location,
        "field": corpus.source.field,
        "in_sections": corpus.in_sections,
        "vocab_size": tokenizer.vocab_size,
        "splits": splits,
        "near_duplicates": corpus.near_duplicates,
        "dropped": dict(corpus.log.left_out),
        "dropped_examples": corpus.log.examples,
        "notes": corpus.notes,
    }


def describe_split(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A split's entry in the manifest, from the entries of its shards in order."""
    digest = hashlib.sha256(
        "".join(s["sha256"] + s.get(MASK_CHECKSUM, "") for s in shards).encode()
    )
    return {
        "documents": sum(s["documents"] for s in shards),
        "tokens": sum(s["tokens"] for s in shards),
        "bytes": sum(s["bytes"] for s in shards),
        "sha256": digest.hexdigest(),  # over the checksums of shards and masks, in order
        **_tokens_by(shards),
        "shards": list(shards),
    }


def _tokens_by(shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tokens by license and by source, of the shards whose documents say them."""
    sums: dict[str, collections.Counter[str]] = {}
    for shard in shards:
        for kind, tokens in shard.get(TOKENS_BY, {}).items():
            sums.setdefault(kind, collections.Counter()).update(tokens)
    return {TOKENS_BY: {k: dict(sorted(c.items())) for k, c in sums.items()}} if sums else {}


def fingerprint_of(splits: Mapping[str, dict[str, Any]], tokenizer: Tokenizer) -> str:
    """Dataset.fingerprint of these splits, given as in the manifest: SHA-256, hexadecimal."""
    whole = "".join(str(split["sha256"]) for split in splits.values()) + tokenizer.fingerprint
    return hashlib.sha256(whole.encode()).hexdigest()
