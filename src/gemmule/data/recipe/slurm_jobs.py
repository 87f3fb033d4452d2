"""The jobs of Slurm that work on a data folder: their numbers are in `slurm/jobs.json` in it."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from gemmule import files
from gemmule.errors import OutputError

JOBS = "slurm/jobs.json"


def keep(out: Path, jobs: Mapping[str, str]) -> None:
    """Writes down the number of the job of each phase that is submitted."""
    files.write_json(out / JOBS, dict(jobs))


def forget(out: Path) -> None:
    """Removes the numbers: the folder is complete."""
    (out / JOBS).unlink(missing_ok=True)


def refuse_if_queued(out: Path) -> None:
    """Refuses to begin anything in a folder on which jobs work, or wait to.

    Raises:
        OutputError: when there are some, or nothing says whether there are.
    """
    try:
        jobs = list(files.read_object(out / JOBS, OutputError).values())
    except FileNotFoundError:
        return
    if not jobs:
        return
    command = ["squeue", "--noheader", "--format=%F", f"--jobs={','.join(jobs)}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        reason = "there is no squeue here"
    else:
        # How squeue says that it has forgotten all of them.
        if asked.returncode and "Invalid job id" in asked.stderr:
            return
        if not asked.returncode:
            if queued := sorted(set(asked.stdout.split())):
                raise OutputError(
                    f"the jobs {', '.join(queued)} of Slurm work on {out}, or wait to: wait until "
                    f"they have ended, or stop them with scancel {' '.join(queued)}"
                )
            return
        reason = f"squeue failed: {asked.stderr.strip()}"
    raise OutputError(
        f"the jobs {', '.join(jobs)} of Slurm were submitted for {out}, and nothing says whether "
        f"they have ended ({reason}): run this where squeue works, or delete {out / JOBS} when "
        "they have"
    )
