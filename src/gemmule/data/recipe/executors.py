"""Phases on several processes: of this machine, of Slurm, of Ray.

Nothing here knows what a phase does. A task is a command (task.py), and tasks need not talk to each
other: a unit that one of them has finished is on disk. datatrove's executors can run the same, see
datatrove_steps.py.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from gemmule import files
from gemmule.data.recipe import slurm_jobs
from gemmule.data.recipe.run import ALONE, PHASES, Executor, Phase, is_complete, start
from gemmule.data.recipe.settings import Recipe
from gemmule.data.recipe.task import FINISH
from gemmule.data.recipe.work import Work
from gemmule.errors import DataError, MissingExtraError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.lock import locked
from gemmule.shell import quoted

SCRIPT = "slurm/task.sh"


def check_tasks(tasks: int) -> None:
    """Refuses a number of tasks that is too small.

    Raises:
        DataError: when it is.
    """
    if tasks < 1:
        raise DataError(f"tasks {tasks} is too few: use at least 1")


def local(out: Path, tasks: int, workers: int = 1) -> Executor:
    """An executor whose tasks are processes of this machine.

    Args:
        out: the data folder.
        tasks: number of processes.
        workers: processes and threads of each one's own.
    """
    check_tasks(tasks)

    def execute(phase: Phase) -> None:
        running = [
            subprocess.Popen(
                _command(out, phase, rank, tasks, workers), stderr=subprocess.PIPE, text=True
            )
            for rank in range(tasks)
        ]
        try:
            for rank, process in enumerate(running):
                error = process.communicate()[1]
                if process.returncode:
                    raise DataError(_failed(phase, rank, tasks, process.returncode, error))
        finally:
            for process in running:
                process.kill()
                process.wait()

    return execute


def _command(out: Path, phase: str, rank: int, tasks: int, workers: int) -> list[str]:
    module = [sys.executable, "-P", "-m", "gemmule.data.recipe.task"]
    share = [str(out), phase, str(rank), str(tasks)]
    return [*module, *share, "--workers", str(workers), "--parent", str(os.getpid())]


def _failed(phase: str, rank: int, tasks: int, code: int, error: str) -> str:
    lines = [line for line in error.splitlines() if line.strip()]
    reason = lines[-1].removeprefix("gemmule: ") if lines else f"it ended with code {code}"
    return f"task {rank + 1} of {tasks} of the phase {phase}: {reason}"


def ray(out: Path, tasks: int, workers: int = 1, **options: Any) -> Executor:
    """An executor whose tasks run on a Ray cluster, or on this machine when there is none.

    Args:
        out: the data folder, which all machines see.
        tasks: number of tasks.
        workers: processes and threads of each one's own.
        options: arguments of `ray.init`, such as `address`.

    Raises:
        MissingExtraError: when Ray is not installed.
    """
    check_tasks(tasks)
    try:
        import ray as cluster
    except ImportError:
        raise MissingExtraError("ray", "ray", "--executor ray") from None

    def execute(phase: Phase) -> None:
        if not cluster.is_initialized():
            cluster.init(log_to_driver=False, **options)
        folder = Path.cwd()  # paths of a recipe are relative to it

        def share(rank: int) -> str:
            command = _command(out, phase, rank, tasks, workers)
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            return (
                _failed(phase, rank, tasks, done.returncode, done.stderr) if done.returncode else ""
            )

        remote = cluster.remote(num_cpus=workers)(share)
        failures = [f for f in cluster.get([remote.remote(rank) for rank in range(tasks)]) if f]
        if failures:
            raise DataError(failures[0])

    return execute


def submit_to_slurm(
    recipe: Recipe,
    tokenizer: Tokenizer,
    out: Path,
    tasks: int,
    options: Sequence[str] = (),
) -> Mapping[str, str]:
    """Starts a recipe's folder and submits its phases as jobs that wait for each other.

    Args:
        recipe: the recipe.
        tokenizer: the tokenizer.
        out: the data folder, which all machines see.
        tasks: number of tasks of each phase: the size of its job array.
        options: options of sbatch, without the dashes, such as "partition=cpu" or "time=02:00:00".

    Returns:
        The number of the job of each phase; none when the folder is complete already.

    Raises:
        DataError: when sbatch is not there or refuses a job.
        OutputError: when jobs that were submitted before have not ended.
    """
    check_tasks(tasks)
    work = Work.of(recipe, out)
    if is_complete(work, tokenizer):
        return {}
    with locked(out):
        start(work, tokenizer)
        files.write_text(out / SCRIPT, slurm_script(out, options))
    jobs: dict[str, str] = {}
    for phase in (*PHASES, FINISH):
        count = 1 if phase in (*ALONE, FINISH) else tasks
        after = [f"--dependency=afterok:{list(jobs.values())[-1]}"] if jobs else []
        command = ["sbatch", "--parsable", f"--array=0-{count - 1}", "--kill-on-invalid-dep=yes"]
        jobs[phase] = _sbatch([*command, *after, str(out / SCRIPT), phase, str(count)])
        slurm_jobs.keep(out, jobs)
    return jobs


def slurm_script(out: Path, options: Sequence[str] = ()) -> str:
    """The job script of all phases; its arguments are a phase and the number of tasks."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("slurm.sh").render(
        log=str(out / "slurm" / "%x-%A-%a.log"),
        options=options,
        folder=quoted(Path.cwd()),
        python=quoted(Path(sys.executable)),
        path=quoted(os.environ.get("PYTHONPATH", "")),
        out=quoted(out),
    )


def _sbatch(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataError(
            "no sbatch here: run this on a machine from which Slurm jobs are submitted, or use "
            "--executor local"
        ) from None
    if done.returncode:
        raise DataError(f"sbatch refused {' '.join(command[1:])}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
