"""Stand-ins for Slurm's commands, which run a rendered script for real on this machine."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

# Drops srun's own options and starts the rest once per node, as tasks of one step.
_SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
for ((task = 0; task < SLURM_NNODES; task++)); do
  SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 SLURM_NTASKS=$SLURM_NNODES \\
    "$@" >>"$SLURM_FAKE/task-$task.log" 2>&1 &
  echo $! >>"$SLURM_FAKE/tasks"
done
trap 'kill -KILL $(cat "$SLURM_FAKE/tasks")' TERM  # as the real one
worst=0
for task in $(cat "$SLURM_FAKE/tasks"); do
  wait $task || worst=$?
done
rm "$SLURM_FAKE/tasks"
exit $worst
"""
_SCANCEL = """#!/bin/bash
[ "$1 $2" = "--signal=TERM $SLURM_JOB_ID" ] || exit 9
kill -TERM $(cat "$SLURM_FAKE/tasks")
"""
_SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then
  printf 'localhost\\nlocalhost\\n'
elif [ "$1" = requeue ]; then
  echo "$2" >>"$SLURM_FAKE/requeued"
fi
"""
# Shows what torchrun is asked to do, where a test does not need it done. A line is one write: every
# node appends its own to the same file, at the same time.
RECORDING = """#!/bin/bash
words=$(printf '%q ' "$@")
echo "$words" >>"${SLURM_FAKE:-.}/torchrun"
"""


def install(folder: Path, **further: str) -> Path:
    """Writes the stand-ins, and further programs by name, into a folder for PATH."""
    folder.mkdir()
    for name, text in {
        "srun": _SRUN,
        "scancel": _SCANCEL,
        "scontrol": _SCONTROL,
        **further,
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def directives(script: str) -> dict[str, str]:
    """The options that sbatch reads from a script: those before its first command."""
    options = {}
    for line in script.splitlines():
        if match := re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(.*))?", line):
            options[match[1]] = match[2] or ""
        elif line and not line.startswith("#"):
            break
    return options


class Job:
    """A script as sbatch runs it: its shell, with the environment of its directives."""

    def __init__(self, script: Path, folder: Path, programs: Path, restarts: int = 0) -> None:
        self.folder, options = folder, directives(script.read_text())
        nodes = options["nodes"]
        environment = {
            **os.environ, "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SLURM_FAKE": str(folder), "SLURM_JOB_ID": "77", "SLURM_NNODES": nodes,
            "SLURM_JOB_NODELIST": f"node[1-{nodes}]", "SLURM_RESTART_COUNT": str(restarts),
        }  # fmt: skip
        self.notice = options["signal"]
        self.shell = subprocess.Popen(
            ["bash", str(script)], env=environment, cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def time_is_nearly_up(self) -> None:
        """What Slurm does at the time that --signal names."""
        to, _, number = self.notice.partition("@")[0].partition(":")
        assert to == "B", "only the shell is told"
        self.shell.send_signal(signal.Signals[f"SIG{number}"])

    def end(self, seconds: float) -> int:
        """Waits for the end of the shell; its exit status."""
        try:
            self.shell.communicate(timeout=seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):  # with what it has started
                os.killpg(self.shell.pid, signal.SIGKILL)
        return self.shell.returncode

    @property
    def requeued(self) -> bool:
        """Whether the job has asked to be queued again."""
        return (self.folder / "requeued").exists()
