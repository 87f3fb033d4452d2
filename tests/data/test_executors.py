"""Recipes on several processes, on Slurm (a stand-in), and as steps of datatrove."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gemmule import files
from gemmule.data.dataset import Dataset
from gemmule.data.recipe import executors, slurm_jobs
from gemmule.data.recipe.datatrove_steps import PhaseStep, StageStep
from gemmule.data.recipe.heuristics.stage import HeuristicsSettings
from gemmule.data.recipe.run import ALONE, PHASES, finish, run_phase, run_recipe, start
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.work import Work
from gemmule.errors import DataError, OutputError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.lock import locked


@pytest.fixture(scope="module")
def recipe(text_folder: Path) -> Recipe:
    sources = [
        {"name": "some", "path": f"{text_folder}/*[0-4].txt"},
        {"name": "rest", "path": f"{text_folder}/*[5-9].txt"},
    ]
    return Recipe.parse({"sources": sources, "normalize": {}})


@pytest.fixture(scope="module")
def alone(recipe: Recipe, pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The result of one process."""
    return run_recipe(recipe, pieces, tmp_path_factory.mktemp("alone") / "data", workers=1)


@pytest.mark.slow
def test_tasks_are_processes(
    recipe: Recipe, pieces: Tokenizer, alone: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    made = run_recipe(recipe, pieces, out, workers=1, execute=executors.local(out, 4))
    assert made.fingerprint == alone.fingerprint
    assert made.manifest == alone.manifest


def test_workers_are_processes(
    recipe: Recipe, pieces: Tokenizer, alone: Dataset, tmp_path: Path
) -> None:
    made = run_recipe(recipe, pieces, tmp_path / "data", workers=2)
    assert made.manifest == alone.manifest


def test_a_task_that_fails_is_named(pieces: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text\n" * 100)
    out = tmp_path / "data"
    recipe = Recipe.parse({"sources": [{"name": "a", "path": tmp_path / "a.txt"}]})

    def execute(phase: Any) -> None:
        (out / "recipe.toml").write_text("sourses = []")
        executors.local(out, 1)(phase)

    with pytest.raises(DataError, match=r"task 1 of 1 of the phase filter: .*sourses"):
        run_recipe(recipe, pieces, out, workers=1, execute=execute)
    with pytest.raises(DataError, match="tasks 0 is too few"):
        executors.local(out, 0)


# What sbatch does, at once: each task of the array, after the jobs it depends on.
SBATCH = """#!/bin/bash
echo "$@" >> "$LOG"
for argument; do
  case "$argument" in
    --array=0-*) last="${argument#--array=0-}" ;;
    --dependency=afterok:*) grep -qx "${argument##*:}" "$LOG.done" || exit 3 ;;
    --*) ;;
    *) break ;;
  esac
  shift
done
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=1 bash "$@" || exit 4
done
job=$(( $(wc -l < "$LOG") + 40 ))
echo $job >> "$LOG.done"
echo "$job;cluster"
"""


def test_slurm_runs_the_phases_one_after_the_other(
    recipe: Recipe, pieces: Tokenizer, alone: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sbatch = tmp_path / "bin/sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(SBATCH)
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    out = tmp_path / "my data"
    jobs = executors.submit_to_slurm(recipe, pieces, out, 2, ["partition=cpu"])
    assert list(jobs) == [*PHASES, "finish"]
    assert list(jobs.values()) == ["41", "42", "43", "44", "45"]
    assert files.read_json(out / slurm_jobs.JOBS) == jobs
    script = (out / executors.SCRIPT).read_text()
    assert "\n#SBATCH --partition=cpu\n" in script
    assert subprocess.run(["bash", "-n", out / executors.SCRIPT], check=False).returncode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].startswith("--parsable --array=0-1 ")
    assert "--array=0-0 --kill-on-invalid-dep=yes --dependency=afterok:42" in lines[2]
    assert Dataset.open(out).manifest == alone.manifest
    assert executors.submit_to_slurm(recipe, pieces, out, 2) == {}


@pytest.mark.parametrize(
    ("squeue", "message"),
    [
        ("echo 41; echo 42; echo 42", r"jobs 41, 42 of Slurm work on .*: .*scancel 41 42"),
        ("echo no controller >&2; exit 1", r"nothing says .*\(squeue failed: no controller\)"),
        (None, r"no squeue here\): .* or delete .*jobs\.json when they have"),
        ("true", None),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", None),
    ],
)
def test_jobs_that_are_queued_keep_others_off(
    squeue: str | None, message: str | None, recipe: Recipe, pieces: Tokenizer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    work = Work.of(recipe, tmp_path / "data")
    start(work, pieces)
    slurm_jobs.keep(work.out, {"filter": "41", "links": "42"})
    if squeue is not None:
        (tmp_path / "squeue").write_text(f"#!/bin/bash\n{squeue}\n")
        (tmp_path / "squeue").chmod(0o755)
    path = "" if squeue is None else f"{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", f"{tmp_path}{path}")
    if message is None:
        start(work, pieces)
        return
    with pytest.raises(OutputError, match=message):
        executors.submit_to_slurm(recipe, pieces, work.out, 2)
    with pytest.raises(OutputError, match=message):
        run_recipe(recipe, pieces, work.out, workers=1)


def test_tasks_keep_others_off(recipe: Recipe, pieces: Tokenizer, tmp_path: Path) -> None:
    work = Work.of(recipe, tmp_path / "data")
    start(work, pieces)
    half = work.folder / ".00000.json.7.tmp"
    with locked(work.folder, "2/4"):
        half.touch()
        with pytest.raises(OutputError, match="work is being written by process"):
            start(work, pieces)
        with pytest.raises(OutputError, match="work is being written by process"):
            run_phase(work, "filter", pieces, 1, 4, 1)
        run_phase(work, "filter", pieces, 0, 4, 1)
        assert half.exists()
    start(work, pieces)
    assert not half.exists()


PARENT = """
import sys
from pathlib import Path
from gemmule.data.recipe.executors import local

local(Path(sys.argv[1]), 1)("filter")
"""


def test_tasks_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.toml")  # the task waits for what it is to read
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True) as parent:
        try:
            writer = _soon(lambda: _writer(tmp_path / "recipe.toml"))
            parent.kill()
            parent.wait(30)
            _soon(lambda: not _runs(parent.pid))
            os.close(writer)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def _soon(get: Callable[[], int]) -> int:
    """What a function gives, once that is not 0, within a minute."""
    for _ in range(600):
        if value := get():
            return value
        time.sleep(0.1)
    pytest.fail("it did not happen within a minute")


def _writer(fifo: Path) -> int:
    """A descriptor to write to a pipe, once a process reads it."""
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return 0


def _runs(group: int) -> bool:
    """Whether a process of a group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_slurm(
    recipe: Recipe, pieces: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"no sbatch here: .*--executor local"):
        executors.submit_to_slurm(recipe, pieces, tmp_path / "data", 2)


def test_a_stage_is_a_step_of_a_pipeline() -> None:
    documents = [SimpleNamespace(id=str(n), text="short\r\n" * n, metadata={}) for n in (1, 40)]
    step = StageStep(HeuristicsSettings.parse({"rules": ["gopher_quality"]}))
    assert list(step(documents, 0, 1)) == []
    words = "the ship that came of old to be with them and have sailed into harbour " * 5
    kept = SimpleNamespace(id="a", text=words, metadata={"url": "u"})
    assert list(step(iter([kept]), 3, 4)) == [kept]


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 4])
def test_phases_in_datatroves_executor(
    tasks: int, recipe: Recipe, pieces: Tokenizer, alone: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("datatrove", reason="datatrove is compared with where it is installed")
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    logger.remove()
    work = Work.of(recipe, tmp_path / "data")
    start(work, pieces)
    for phase in PHASES:
        count = 1 if phase in ALONE else tasks
        LocalPipelineExecutor(
            pipeline=[PhaseStep(work.out, phase)], tasks=count, workers=1,
            logging_dir=str(tmp_path / f"log-{phase}"),
        ).run()  # fmt: skip
    finish(work, pieces)
    assert Dataset.open(work.out).manifest == alone.manifest


@pytest.mark.slow
def test_ray_in_its_local_mode(
    recipe: Recipe, pieces: Tokenizer, alone: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    out = tmp_path / "data"
    execute = executors.ray(out, 2, num_cpus=2, include_dashboard=False)
    made = run_recipe(recipe, pieces, out, workers=1, execute=execute)
    assert made.manifest == alone.manifest


def test_a_phase_that_was_interrupted_is_done_by_other_tasks(
    recipe: Recipe, pieces: Tokenizer, alone: Dataset, tmp_path: Path
) -> None:
    """Three tasks filter, one of them twice, and five make shards: units are what counts."""
    work = Work.of(recipe, tmp_path / "data")
    start(work, pieces)
    for rank in (2, 0, 1, 0):
        run_phase(work, "filter", pieces, rank, 3, 1)
    for phase in PHASES[1:]:
        count = 1 if phase in ALONE else 5
        for rank in range(count):
            run_phase(work, phase, pieces, rank, count, 1)
    finish(work, pieces)
    assert files.read_json(work.out / "manifest.json") == alone.manifest
