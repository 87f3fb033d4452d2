"""A Slurm job that really trains: two nodes on loopback, out of time, queued again, finished."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from schedulers import Job, install

from gemmule.launch.render import render
from gemmule.launch.request import LaunchRequest
from gemmule.runs.metrics import read_metrics
from ranks import free_port

pytestmark = pytest.mark.slow
STEPS = 400
# As on a cluster: gemmule is there, and the ranks talk over the network that there is.
SETUP = "export GLOO_SOCKET_IFNAME=lo OMP_NUM_THREADS=1 CODECARBON_LOG_LEVEL=error"


def steps(run: Path) -> list[int]:
    """The steps that a run has logged."""
    if not (run / "metrics.jsonl").exists():
        return []
    return [m["step"] for m in read_metrics(run) if "loss" in m]


def wait_for_steps(job: Job, run: Path) -> None:
    end = time.monotonic() + 120
    while len(steps(run)) < 3:
        assert job.shell.poll() is None, (job.folder / "task-0.log").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_job_is_stopped_in_time_and_finished_by_its_next_start(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmule.launch.render.PORT", free_port())
    settings = tiny(steps=STEPS, log_every=1, runtime={"device": "cpu", "compile": False})
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(settings))
    run = tmp_path / "run"
    command = ("train", str(tmp_path / "tiny.toml"), "--out", str(run))
    values = {"scheduler": "slurm", "nodes": 2, "command": command, "out": run, "setup": SETUP}
    (tmp_path / "job.sh").write_text(render(LaunchRequest.parse(values)))
    programs = install(tmp_path / "programs")
    first = Job(tmp_path / "job.sh", tmp_path, programs)
    wait_for_steps(first, run)
    first.time_is_nearly_up()
    assert first.end(120) != 0
    assert first.requeued, (tmp_path / "task-0.log").read_text()
    assert 3 <= len(steps(run)) < STEPS
    (tmp_path / "requeued").unlink()
    second = Job(tmp_path / "job.sh", tmp_path, programs, restarts=1)
    assert second.end(300) == 0, (tmp_path / "task-0.log").read_text()
    assert not second.requeued
    assert (run / "result.json").is_file()
    # No step was lost or taken twice.
    assert steps(run) == list(range(1, STEPS + 1))
