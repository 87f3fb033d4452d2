"""The first phase: documents are read, go through the stages, and become chunks.

One process reads, so that a corpus in one file keeps all cores busy; others apply the stages. Only
a few chunks are in memory at a time.
"""

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.console import Progress
from gemmule.data.read_log import ReadLog
from gemmule.data.recipe import chunks
from gemmule.data.recipe.chunks import ChunkJob, make_chunk
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.stage import Stage
from gemmule.data.recipe.work import Unit, Work, is_finished, sha256_of
from gemmule.data.sources import Document
from gemmule.errors import DataError

Submit = Callable[[ChunkJob], "concurrent.futures.Future[str]"]


def filter_units(
    work: Work,
    stages: Sequence[Stage],
    units: Sequence[Unit],
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Applies the stages to the documents of units that are not done yet.

    Args:
        work: the recipe at work.
        stages: its stages, opened.
        units: the units to do.
        workers: number of processes that apply stages; 1: this one does.
        progress: called with the bytes of files read, their sum, and "bytes".

    Raises:
        DataError: when a source cannot be read, or a process was ended by the system.
    """
    settings = settings_digest(work.recipe, stages)
    waiting = [unit for unit in units if not is_unit_done(work, unit, settings)]
    if not waiting:
        return
    if workers == 1:
        _run(work, waiting, settings, _Inline(stages), 1, progress)
        return
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (work.out, work.recipe)
    )
    try:
        _run(work, waiting, settings, lambda job: pool.submit(_work, job), 2 * workers, progress)
    except BrokenProcessPool:
        raise DataError(
            "a process that applies stages was ended by the system, most likely for want of "
            "memory: run the same again with fewer --workers; it continues from here"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def settings_digest(recipe: Recipe, stages: Sequence[Stage]) -> str:
    """SHA-256 of whatever the stages' outcomes depend on."""
    action = recipe.near_duplicates.action != "ignore"
    return sha256_of(str(action), *(f"{stage.name} {stage.fingerprint}" for stage in stages))


def is_unit_done(work: Work, unit: Unit, settings: str) -> bool:
    """Whether all chunks of a unit are there."""
    path = work.unit_folder(unit) / "unit.json"
    return is_finished(path, sha256_of(settings, unit.fingerprint))


class _Inline:
    """Makes chunks in this process."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages

    def __call__(self, job: ChunkJob) -> "concurrent.futures.Future[str]":
        future: concurrent.futures.Future[str] = concurrent.futures.Future()
        future.set_result(make_chunk(job, self._stages))
        return future


@dataclasses.dataclass
class _UnitInHand:
    """A unit of which chunks are being made."""

    unit: Unit
    log: ReadLog
    digests: list[str]


def _run(
    work: Work,
    units: Sequence[Unit],
    settings: str,
    submit: Submit,
    most: int,
    progress: Progress | None,
) -> None:
    pending: collections.deque[tuple[_UnitInHand, concurrent.futures.Future[str] | None]]
    pending = collections.deque()
    total, done = sum(unit.size for unit in units), 0

    def collect() -> None:
        in_hand, future = pending.popleft()
        if future is None:  # the end of a unit
            _finish(work, in_hand, settings)
        else:
            in_hand.digests.append(future.result())

    for unit in units:
        in_hand = _UnitInHand(unit, ReadLog(), [])
        read = 0
        for number, documents in enumerate(_chunks(unit, in_hand.log)):
            path = work.unit_folder(unit) / f"{number:05d}"
            near = work.recipe.near_duplicates.action != "ignore"
            pending.append((in_hand, submit(ChunkJob(path, documents, settings, near))))
            read += sum(len(document.text) for document in documents)
            if progress and total:
                progress(done + min(read, unit.size), total, "bytes")
            while len(pending) > most:
                collect()
        pending.append((in_hand, None))
        done += unit.size
    while pending:
        collect()
    if progress and total:
        progress(total, total, "bytes")


def _chunks(unit: Unit, log: ReadLog) -> Iterator[list[Document]]:
    """The unit's documents, a chunk at a time."""
    chunk: list[Document] = []
    size = 0
    for document in unit.files.documents(log, unit.in_sections):
        chunk.append(dataclasses.replace(document, source=unit.source))
        size += len(document.text)
        if size >= chunks.CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _finish(work: Work, in_hand: _UnitInHand, settings: str) -> None:
    """Writes a unit's record, which says that it is done."""
    folder, unit = work.unit_folder(in_hand.unit), in_hand.unit
    counts = [
        files.read_json(folder / f"{number:05d}.json")["documents"]
        for number in range(len(in_hand.digests))
    ]
    record: dict[str, Any] = {
        "inputs": sha256_of(settings, unit.fingerprint),
        "source": unit.source,
        "documents": counts,
        "chunks": in_hand.digests,
        "left_out": dict(in_hand.log.left_out),
        "left_out_examples": in_hand.log.examples,
        "fields": list(in_hand.log.fields),
        "notes": in_hand.log.notes,
    }
    files.write_json(folder / "unit.json", record)


_stages: list[Stage] = []


def _start_worker(out: Path, recipe: Recipe) -> None:
    """Opens the stages in a process of the pool, which ends when the one that reads does."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _stages[:] = Work(out, recipe, (), {}).open_stages()


def _work(job: ChunkJob) -> str:
    return make_chunk(job, _stages)
