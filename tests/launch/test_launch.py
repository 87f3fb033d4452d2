"""Launch scripts: what they say, and that they do it, with stand-ins for the schedulers."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from schedulers import RECORDING, Job, directives, install

from gemmule import cli
from gemmule.errors import ConfigError
from gemmule.launch.render import render
from gemmule.launch.request import LaunchRequest

TRAIN = ("train", "configs/train-1m.toml", "--set", "data.path=/shared/my data", "--out")
SHARED = {
    "slurm": {"gpu": "any"},
    "sky": {"gpu": "H100", "setup": "pip install .", "volume": "claim:/shared"},
    "kubeflow": {"gpu": "any", "image": "there/gemmule:1", "volume": "claim:/shared"},
}


def request(scheduler: str, out: str = "/shared/run", **more: Any) -> LaunchRequest:
    values = {"scheduler": scheduler, "command": (*TRAIN, out), "out": out, "nodes": 2, "nproc": 4}
    return LaunchRequest.parse({**values, **SHARED[scheduler], **more}, source="launch")


def torchrun_of(folder: Path, script: str, **environment: str) -> list[str]:
    """The words that a script gives to torchrun; the folder's run is its --out."""
    programs = folder / "programs"
    if not programs.exists():
        install(programs, torchrun=RECORDING)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=30, check=False,
        env={"PATH": f"{programs}:/usr/bin:/bin", "SLURM_FAKE": str(folder), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = (folder / "torchrun").read_text().splitlines()
    (folder / "torchrun").unlink()
    assert len(set(words)) == 1, "every node runs the same"
    return words[0].split(" ")[:-1]


def test_slurm_is_told_what_the_run_needs() -> None:
    more = {"cpus": 32, "memory": 200, "hours": 1.01, "options": ("partition=gpu", "exclusive")}
    options = directives(render(request("slurm", **more)))
    assert options == {
        "job-name": "gemmule-run", "nodes": "2", "ntasks-per-node": "1", "gpus-per-node": "4",
        "cpus-per-task": "32", "mem": "200G", "time": "61", "output": "%x-%j.log",
        "open-mode": "append", "requeue": "", "signal": "B:USR1@120", "partition": "gpu",
        "exclusive": "",
    }  # fmt: skip
    assert directives(render(request("slurm", gpu="h100")))["gpus-per-node"] == "h100:4"
    assert "gpus-per-node" not in directives(render(request("slurm", gpu=None)))


def test_a_slurm_job_starts_the_run_and_then_continues_it(tmp_path: Path) -> None:
    out = tmp_path / "the run"
    command = (*TRAIN, str(out), "--max-wh", "5", "--json")
    script = render(request("slurm", str(out), command=command, setup="export HERE='a b'"))
    (tmp_path / "job.sh").write_text(script)
    programs = install(tmp_path / "programs", torchrun=RECORDING)
    given = []
    for restarts in range(2):
        job = Job(tmp_path / "job.sh", tmp_path, programs, restarts)
        assert job.end(30) == 0
        lines = (tmp_path / "torchrun").read_text().splitlines()
        assert len(lines) == 2, "a torchrun on each node"
        assert lines[0] == lines[1]
        given.append(lines[0])
        (tmp_path / "torchrun").unlink()
    ranks = "--nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=localhost:29500 "
    words = "-m gemmule train --resume-if-started configs/train-1m.toml --set"
    further = f"data.path=/shared/my\\ data --out {out} --max-wh 5 --json "
    further = further.replace("the run", "the\\ run")
    assert given[0] == f"{ranks}--rdzv-id=77-0 {words} {further}"
    assert given[1] == f"{ranks}--rdzv-id=77-1 {words} {further}"  # its budget and --json too
    assert not job.requeued


# Saves when it is asked to, and then ends as torchrun does.
STOPPABLE = """#!/bin/bash
trap 'sleep 0.3; echo saved; exit 1' TERM
echo started
while :; do sleep 0.05; done
"""


def wait_for_ranks(job: Job) -> list[Path]:
    """The logs of both tasks, once both have started and srun has written down both."""
    logs, tasks = [job.folder / f"task-{task}.log" for task in range(2)], job.folder / "tasks"
    while not (
        all(log.exists() and "started" in log.read_text() for log in logs)
        and len(tasks.read_text().split()) == 2
    ):
        assert job.shell.poll() is None
        time.sleep(0.02)
    return logs


def test_a_slurm_job_that_runs_out_of_time_saves_and_is_queued_again(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(render(request("slurm", str(tmp_path / "run"))))
    job = Job(tmp_path / "job.sh", tmp_path, install(tmp_path / "programs", torchrun=STOPPABLE))
    logs = wait_for_ranks(job)
    job.time_is_nearly_up()
    assert job.end(30) == 1
    assert [log.read_text().split() for log in logs] == [["started", "saved"]] * 2
    assert (tmp_path / "requeued").read_text() == "77\n"


def test_a_slurm_job_that_fails_or_is_cancelled_is_not_queued_again(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(render(request("slurm", str(tmp_path / "run"))))
    programs = install(tmp_path / "programs", torchrun="#!/bin/bash\nexit 7\n")
    job = Job(tmp_path / "job.sh", tmp_path, programs)
    assert job.end(30) == 7
    assert not job.requeued
    (programs / "torchrun").write_text(STOPPABLE)
    job = Job(tmp_path / "job.sh", tmp_path, programs)
    wait_for_ranks(job)
    job.shell.terminate()  # the shell stays for the ranks, which have Slurm's KillWait
    for task in (tmp_path / "tasks").read_text().split():
        subprocess.run(["kill", "-TERM", task], check=True)
    assert job.end(30) == 1
    assert not job.requeued


def test_skypilot_starts_every_node(tmp_path: Path) -> None:
    out = tmp_path / "run"
    volume = f"claim:{tmp_path}"
    task = yaml.safe_load(render(request("sky", str(out), volume=volume, cpus=8, memory=64)))
    assert task["num_nodes"] == 2
    assert task["resources"] == {
        "accelerators": "H100:4", "cpus": "8+", "memory": "64+", "disk_size": 256,
    }  # fmt: skip
    assert task["volumes"] == {str(tmp_path): "claim"}
    assert (task["name"], task["setup"], task["workdir"]) == ("gemmule-run", "pip install .", ".")
    place = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    assert torchrun_of(tmp_path, task["run"], **place) == [
        "--nnodes=2", "--nproc-per-node=4", "--node-rank=1", "--master-addr=10.0.0.1",
        "--master-port=29500", "-m", "gemmule", "train", "--resume-if-started", *TRAIN[1:3],
        "data.path=/shared/my\\", "data", "--out", str(out),
    ]  # fmt: skip
    alone = yaml.safe_load(render(request("sky", nodes=1, volume="s3://bucket/x:/shared")))
    assert alone["file_mounts"] == {"/shared": {"source": "s3://bucket/x", "mode": "MOUNT_CACHED"}}


def test_a_trainjob_runs_on_the_runtime_for_torch(tmp_path: Path) -> None:
    job = yaml.safe_load(
        render(
            request("kubeflow", f"{tmp_path}/run", volume=f"claim:{tmp_path}", hours=2, gpu="A100",
                    cpus=8, memory=64, setup="export HERE='a b'")
        )
    )  # fmt: skip
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    spec, trainer = job["spec"], job["spec"]["trainer"]
    assert spec["runtimeRef"] == {"name": "torch-distributed"}
    assert spec["activeDeadlineSeconds"] == 7200
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (
        "there/gemmule:1", 2, 4,
    )  # fmt: skip
    limits = {"nvidia.com/gpu": 4, "cpu": 8, "memory": "64Gi"}
    assert trainer["resourcesPerNode"] == {"limits": limits}
    assert trainer["command"] == ["bash", "-c"]
    words = torchrun_of(tmp_path, trainer["args"][0])  # torchrun reads PET_NNODES and the others
    assert words[:5] == ["-m", "gemmule", "train", "--resume-if-started", TRAIN[1]]
    (replicated,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"][
        "replicatedJobs"
    ]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (volume,), (container,) = pod["volumes"], pod["containers"]
    assert volume["persistentVolumeClaim"] == {"claimName": "claim"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": str(tmp_path)}]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "A100"}


@pytest.mark.parametrize(
    ("scheduler", "settings", "message"),
    [
        ("slurm", {"image": "x"}, "--image is not for Slurm: start the container in --setup"),
        ("slurm", {"volume": "a:/shared"}, "--volume is not for Slurm"),
        ("slurm", {"options": ("--partition gpu",)}, "write an option of sbatch without its dash"),
        ("slurm", {"name": "My job"}, "lower-case letters, digits and dashes"),
        ("slurm", {"setup": "a\nb"}, "--setup is one line of shell"),
        ("slurm", {"nodes": 0}, "nodes"),
        ("sky", {"hours": 3}, "--hours is not for SkyPilot: sky launch has"),
        ("sky", {"options": ("x=1",)}, "--option is not for SkyPilot: edit the YAML"),
        ("sky", {"gpu": "any"}, "SkyPilot needs a type, as in --gpu H100"),
        ("sky", {"setup": None}, "a new machine has no gemmule"),
        ("sky", {"volume": None}, "machines of SkyPilot lose their disks"),
        ("sky", {"volume": "/shared"}, "write SOURCE:/PATH"),
        ("sky", {"volume": "s3://b:/shared"}, "each machine has its own view of a bucket"),
        ("sky", {"volume": "claim:/other"}, "is not on the shared storage, which is mounted at"),
        ("kubeflow", {"image": None}, "ubeflow runs containers: give --image"),
        ("kubeflow", {"volume": "s3://b:/shared"}, "Kubernetes mounts a claim"),
    ],
)
def test_what_cannot_work_is_one_clear_error(
    scheduler: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        request(scheduler, **settings)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["launch", *words])
    assert stopped.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_the_command_prints_or_writes_a_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--slurm", "--nodes", "2", "distill", "--teacher", "t", "--out", "runs/x"]
    words += ["--set", "steps=5", "--set", "data.path=d"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", *words])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    command = "--teacher t --out runs/x --set steps=5 --set data.path=d"
    assert f"-m gemmule distill --resume-if-started {command} &" in printed
    with pytest.raises(SystemExit):
        cli.main(["launch", "--script", str(tmp_path / "job.sh"), *words])
    assert (tmp_path / "job.sh").read_text() == printed


def test_a_recording_continues_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    record = ["record", "runs/big", "--data", "d", "--out", "runs/targets", "--draws", "9"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", "--slurm", "--nodes", "2", "--nproc", "4", *record])
    assert ended.value.code == 0
    assert f"-m gemmule {' '.join(record)} &" in capsys.readouterr().out
    assert "draws" in refusal(capsys, "--slurm", *record[:-1], "0")
    assert "give --nproc to gemmule launch" in refusal(capsys, "--slurm", *record, "--nproc=2")


def test_the_command_is_checked_before_it_waits_in_a_queue(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    train = ("train", "--out", "runs/x", "--set", "data.path=d", "--set", "steps=5")
    assert "give one of --slurm, --sky and --kubeflow" in refusal(capsys, *train)
    assert "gemmule serve does not run on many" in refusal(capsys, "--slurm", "serve", "m")
    assert "leave --resume out" in refusal(capsys, "--slurm", *train, "--resume")
    assert "give --nproc to gemmule launch" in refusal(capsys, "--slurm", *train, "--nproc", "2")
    assert "give --nproc to gemmule launch" in refusal(capsys, "--slurm", *train, "--nproc=2")
    three = ("--slurm", "--nodes", "3", *train, "--set", "data.batch_size=8")
    assert "3 ranks cannot share a batch equally" in refusal(capsys, *three)
    four = ("--slurm", "--nodes", "2", "--nproc", "2", "--script", str(tmp_path / "job.sh"), *train)
    groups = ("--set", "data.batch_size=1", "--set", "parallel.tensor_parallel_degree=4")
    with pytest.raises(SystemExit) as ended:
        cli.main(["launch", *four, *groups])  # one group, which computes the same rows
    assert ended.value.code == 0
    groups = ("--set", "data.batch_size=12", "--set", "parallel.tensor_parallel_degree=3")
    assert "4 ranks cannot be divided into groups of 3" in refusal(capsys, *four, *groups)
    assert "did you mean" in refusal(capsys, "--slurm", *train, "--set", "stepz=5")
    assert "No such option: --foo" in refusal(capsys, "--slurm", *train, "--foo")
    assert "Missing option '--out'" in refusal(capsys, "--slurm", "train")
