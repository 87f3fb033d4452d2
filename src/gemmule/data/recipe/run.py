"""Runs a recipe: phase after phase, here or as one of several processes.

The same recipe gives the same bytes for any number of processes and threads, and a run that is
killed at any moment goes on when it is started again.
"""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from gemmule import files
from gemmule.console import Progress
from gemmule.data.corpus import SPLITS
from gemmule.data.dataset import FORMAT, MANIFEST, Dataset
from gemmule.data.prepare import PLAN, SHARDS, STAGE_FILES, TOKENIZER, claim
from gemmule.data.recipe import results, slurm_jobs
from gemmule.data.recipe.documents import KINDS, assign_documents, read_documents
from gemmule.data.recipe.filtering import filter_units, is_unit_done, settings_digest
from gemmule.data.recipe.links import find_links, link_units
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.sharding import make_shards
from gemmule.data.recipe.work import ARTIFACTS, Work, sha256_of
from gemmule.errors import DataError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.lock import locked
from gemmule.runtime import host

Phase = Literal["filter", "links", "documents", "shards"]
PHASES: tuple[Phase, ...] = get_args(Phase)
ALONE: tuple[Phase, ...] = ("documents",)  # phases that one process does
SETTINGS, PAGE = "recipe.toml", "page.html"

Executor = Callable[[Phase], None]


def run_recipe(
    recipe: Recipe,
    tokenizer: Tokenizer,
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    stage: Callable[[str], None] | None = None,
    execute: Executor | None = None,
) -> Dataset:
    """Makes a data folder from a recipe.

    If a call is interrupted, the same call continues where it stopped and gives the same bytes. A
    complete folder made by the same recipe from the same files is returned as it is. With more than
    one worker, a script that calls this needs `if __name__ == "__main__":`.

    Args:
        recipe: the recipe.
        tokenizer: the tokenizer; a copy is kept in the folder.
        out: the folder to write.
        workers: number of processes that apply stages, and of threads that tokenize; None: one per
            core.
        progress: called as progress(done, total, unit) by each phase.
        stage: called with the name of each phase.
        execute: runs a whole phase on other processes; None: it is done here.

    Raises:
        DataError: when the sources cannot be used as given, or nothing is left of one.
        OutputError: when `out` cannot be written, holds something else, or is being written by
            another process.
    """
    if workers is not None and workers < 1:
        raise DataError(f"workers {workers} is too few: use at least 1")
    work = Work.of(recipe, Path(out))
    if not is_complete(work, tokenizer):
        with locked(work.out):
            start(work, tokenizer)
            for phase in PHASES:
                if stage:
                    stage(_NAMES[phase])
                if execute and phase not in ALONE:
                    execute(phase)
                else:
                    run_phase(work, phase, tokenizer, 0, 1, workers, progress)
            finish(work, tokenizer)
    elif work.folder.is_dir():  # the last run was killed while it removed the folder
        with locked(work.out):
            shutil.rmtree(work.folder, ignore_errors=True)
    return Dataset.open(work.out, tokenizer)


def is_complete(work: Work, tokenizer: Tokenizer) -> bool:
    """Whether the folder is the result of this recipe already.

    Raises:
        OutputError: when it is that of another one.
    """
    return (work.out / MANIFEST).is_file() and claim(work.out, _plan(work, tokenizer))


def start(work: Work, tokenizer: Tokenizer) -> None:
    """Claims the folder and fits the stages: what phases need, wherever they run.

    Raises:
        OutputError: when the folder is in use, tasks or jobs of another call work on it, or it is
            the result of another recipe.
    """
    slurm_jobs.refuse_if_queued(work.out)
    with locked(work.folder) if work.folder.is_dir() else contextlib.nullcontext():
        # The units in the folder of work know what they were made from.
        claim(work.out, _plan(work, tokenizer), stale=(SHARDS, TOKENIZER, ARTIFACTS))
        for unfinished in work.out.rglob(".*.tmp"):  # left by a run that was killed
            unfinished.unlink()
        tokenizer.save(work.out / TOKENIZER)
        work.recipe.without_secrets().save(work.out / SETTINGS)
        for name, table in work.recipe.stages():
            table.fit(work.artifact(name))


def finish(work: Work, tokenizer: Tokenizer) -> None:
    """Verifies the shards, writes funnel, page and manifest, and removes the folder of work.

    Raises:
        DataError: when a phase is not done, or a shard is not what was written.
    """
    from gemmule.report import data_page  # tasks of other phases need none of it

    plan = files.read_object(work.out / PLAN, DataError)  # files may have changed since the start
    manifest, funnel = results.manifest_of(work, tokenizer, plan, work.open_stages())
    files.write_json(work.out / results.FUNNEL, funnel)
    files.write_text(work.out / PAGE, data_page.render(manifest, funnel))
    files.write_json(work.out / MANIFEST, manifest)
    slurm_jobs.forget(work.out)
    shutil.rmtree(work.folder)


_NAMES = {
    "filter": "reading and filtering",
    "links": "looking for duplicates",
    "documents": "splitting",
    "shards": "tokenizing",
}


def run_phase(
    work: Work,
    phase: Phase,
    tokenizer: Tokenizer,
    rank: int,
    tasks: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Does one process's share of a phase; the phases before it must be done.

    The process holds the lock of its share in the folder of work.

    Args:
        work: the recipe at work, whose stages are fitted.
        phase: the phase.
        tokenizer: the tokenizer.
        rank: number of this process, from 0.
        tasks: number of processes.
        workers: number of processes and threads of this one's own; None: one per core.
        progress: called as progress(done, total, unit).

    Raises:
        DataError: when a phase before is not done, or a source cannot be read.
        OutputError: when another process works on the same share.
    """
    with locked(work.folder, f"{rank + 1}/{tasks}"):
        _do(work, phase, tokenizer, rank, tasks, workers or host.usable_cores(), progress)


def _do(
    work: Work,
    phase: Phase,
    tokenizer: Tokenizer,
    rank: int,
    tasks: int,
    workers: int,
    progress: Progress | None,
) -> None:
    if phase == "filter":
        filter_units(work, work.open_stages(), work.units[rank::tasks], workers, progress)
    elif phase == "links":
        _check_filtered(work)
        find_links(work, link_units(work)[rank::tasks])
    elif phase == "documents":
        results.funnels(work)  # an empty source is an error before more work is done
        assign_documents(work)
        _check_splits(work)
    else:
        make_shards(work, tokenizer, rank, tasks, workers, progress)


def _plan(work: Work, tokenizer: Tokenizer) -> dict[str, Any]:
    sources = work.recipe.sources
    licenses = dict.fromkeys(source.license or "not stated" for source in sources)
    named = _digests(work.recipe)
    return {
        "format": FORMAT,
        "source_fingerprint": work.fingerprint,
        "recipe": sha256_of(work.recipe.without_secrets().model_dump_json()),
        "tokenizer": tokenizer.fingerprint,
        "name": work.recipe.name or " + ".join(source.name for source in sources),
        "licence": ", ".join(licenses),
        **({STAGE_FILES: named} if named else {}),
    }


def _digests(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of each file that a stage names."""
    digests = {}
    for name, table in recipe.stages():
        for path in map(files.expand, table.named_files()):
            if path.is_dir():
                continue  # the stage says what to name instead
            try:
                digests[str(path)] = files.sha256_file(path)
            except OSError as e:
                raise DataError(
                    f"[{name}] names {path}, which cannot be read ({e.strerror}): correct its path "
                    "in the recipe"
                ) from None
    return digests


def _check_filtered(work: Work) -> None:
    settings = settings_digest(work.recipe, work.open_stages())
    for unit in work.units:
        if not is_unit_done(work, unit, settings):
            raise DataError(
                f"unit {unit.number} of source {unit.source!r} is not filtered, or was by other "
                "settings: run the phase filter again first"
            )


def _check_splits(work: Work) -> None:
    """Refuses an empty source and an empty split: duplicates can leave nothing."""
    record, _ = read_documents(work)
    totals = record["totals"]
    for name, total in totals.items():
        if not any(total[split][0] for split in SPLITS):
            numbers = ", ".join(f"{total[kind][0]:,} {kind}" for kind in KINDS.values())
            raise DataError(
                f"source {name!r}: nothing is left of it, because other documents are the same or "
                f"nearly so ({numbers}): remove the source, or those that hold its text as well"
            )
    counts = {split: sum(total[split][0] for total in totals.values()) for split in SPLITS}
    if not all(counts.values()):
        raise DataError(
            f"{sum(counts.values())} document(s) are left: each of the {len(SPLITS)} splits needs "
            "one, so give more text, or set sections = true for its source to cut long documents"
        )
