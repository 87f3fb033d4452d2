"""gemmule train under torchrun and with --nproc: whole commands, signals, restarts, two nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from gemmule import cli
from gemmule.checkpoints.hf.writer import save_model
from gemmule.cli.app import stoppable
from gemmule.cli.processes import (
    Replacement,
    again_with,
    print_error,
    start_processes,
    torchrun,
)
from gemmule.cli.train import start_or_resume
from gemmule.errors import ConfigError, Interrupted
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.ledger import activity
from gemmule.runs.metrics import read_metrics
from gemmule.runtime import torchrun as quiet_torchrun
from gemmule.runtime.world import SOLO, World
from models import random_model, tiny_config
from ranks import free_port, rank_environment

Settings = Callable[..., dict[str, Any]]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]
SECONDS = 150


def start(*command: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(part) for part in command],
        env=rank_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes that torchrun has started, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(int(child) for child in children)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        lines = read_metrics(run) if (run / "metrics.jsonl").exists() else []
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step}: {process.communicate(timeout=20)}")


def model(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def config(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    settings = tiny(steps=150, checkpoint={"every": 10}, evaluation={"every": 100})
    settings["runtime"] |= {"device": "cpu"}
    path.write_text(tomli_w.dumps(settings))
    return path


@pytest.fixture(scope="module")
def alone(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = ended(start(sys.executable, "-m", "gemmule", "train", config, "--out", out))
    assert code == 0, err
    return out


def test_nproc_becomes_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["train", "a.toml", "--nproc", "2", "--out", "x", "--nproc=2", "--text", "t"]
    monkeypatch.setattr("sys.argv", ["gemmule", *given, "--text=t"])
    with pytest.raises(Replacement) as started:
        start_processes(2, without=["--text"])
    command = torchrun(started.value.count, started.value.arguments)
    assert command[:4] == [sys.executable, "-P", "-m", "gemmule.runtime.torchrun"]
    expected = ["-m", "gemmule", "train", "a.toml", "--out", "x"]
    assert command[4:] == ["--standalone", "--nproc-per-node=2", *expected]


def test_processes_start_once_the_command_has_ended(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeat would stay, with the number of a process that lives on, and be a killed run."""
    given = ["train", str(config), "--out", str(tmp_path / "run"), "--nproc", "2"]
    monkeypatch.setattr("sys.argv", ["gemmule", *given])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    activities: list[Any] = []

    def execute(program: str, command: list[str], environment: dict[str, str]) -> None:
        activities.append(activity.current())
        assert environment["PYTHONSAFEPATH"] == "1"
        assert environment["OMP_NUM_THREADS"] == "1"
        raise OSError("replaced")

    monkeypatch.setattr("os.execve", execute)
    with pytest.raises(OSError, match="replaced"):
        cli.main(given)
    assert activities == [None]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["SLURM_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "option"])
def test_a_restart_does_not_continue_another_run(
    how: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, given = tmp_path / "run", ["objective.kind=pretrain", "seed=7"]
    if how != "option":
        monkeypatch.setenv(how, "1")
    new, resumed = start_or_resume(config, given, out, False, how == "option")
    assert not resumed  # there is no run yet
    out.mkdir()
    chosen = {"device": "cpu", "dtype": "float32", "compile": False, "threads": 2}
    resolved = new.runtime.model_copy(update=chosen)
    new.model_copy(update={"runtime": resolved}).save(out / "config.toml")
    open_again = [*given, "runtime.dtype=auto", "runtime.compile=auto", "runtime.threads=0"]
    settings, resumed = start_or_resume(config, open_again, out, False, how == "option")
    assert resumed
    assert settings.runtime.threads == 2
    for other, message in [
        ("seed=8", r"holds another run: its seed is 7, and 8 here\. .*--resume"),
        ("data.path=there", "its data.path is '.*', and 'there' here"),
        ("model.init=x", "its model.init is not set, and 'x' here"),
        ("runtime.threads=1", "its runtime.threads is 2, and 1 here"),
    ]:
        with pytest.raises(ConfigError, match=message):
            start_or_resume(config, [*given, other], out, False, how == "option")
    assert start_or_resume(None, None, out, True, False)[1]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert not start_or_resume(config, ["seed=8"], out, False, False)[1]  # refused by the folder


def test_a_batch_that_processes_cannot_share_starts_none(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("gemmule.cli.processes.start_processes", pytest.fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(config), "--nproc", "7", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "7 ranks cannot share a batch equally" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_hint_to_resume_has_the_processes(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    several, machines = World(), World()
    several.size, several.local_size = 2, 2
    machines.size, machines.local_size = 4, 2
    for world, nproc, words in [
        (SOLO, None, f"train --resume --out {tmp_path}"),
        (SOLO, 3, f"train --resume --nproc 3 --out {tmp_path}"),
        (several, None, f"train --resume --nproc 2 --out {tmp_path}"),
        (machines, None, f"train --resume --out {tmp_path}, under torchrun as before"),
    ]:
        with (
            pytest.raises(Interrupted) as stopped,
            stoppable("saved", "train", tmp_path, again_with(world, nproc)),
        ):
            raise KeyboardInterrupt
        assert str(stopped.value).endswith(words)


def test_torchrun_adds_nothing_to_the_error_of_a_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(error: Exception) -> tuple[int, str]:
        def run() -> None:
            raise error

        monkeypatch.setattr("torch.distributed.run.main", run)
        with pytest.raises(SystemExit) as ended:
            quiet_torchrun.main()
        return int(str(ended.value.code)), capsys.readouterr().err

    def failed(*ends: tuple[int, int]) -> Exception:
        """Exit status and time of ranks 1, 2, …"""
        failures = {}
        for rank, (code, seconds) in enumerate(ends, 1):
            failures[rank] = ProcessFailure(rank, 99, code, "<N/A>")
            failures[rank].timestamp = 1000 + seconds
        return ChildFailedError("gemmule", failures)

    killed = (1, "gemmule: rank 2 was ended by SIGKILL\n")
    assert end(failed((2, 0))) == (2, "")
    assert end(failed((-9, 0))) == (1, "gemmule: rank 1 was ended by SIGKILL\n")
    assert end(failed((1, 0), (-9, 0), (130, 0))) == killed  # they noticed in the same second
    assert end(failed((1, 0), (-9, 1), (-15, 0))) == killed
    assert end(failed((2, 0), (-15, 0))) == (2, "")  # torchrun stopped the other
    assert end(failed((2, 0), (-9, 31))) == (2, "")  # and ended it half a minute later
    assert end(SignalException("stop", signal.SIGTERM)) == (130, "")


@pytest.mark.slow
def test_an_error_of_ranks_that_nproc_started_is_one_line(config: Path, tmp_path: Path) -> None:
    train = [sys.executable, "-m", "gemmule", "train", config, "--out", tmp_path / "run"]
    code, _, err = ended(start(*train, "--nproc", 2, "--set", f"model.init={tmp_path / 'none'}"))
    assert code == 2
    assert err.startswith("gemmule: nothing at "), err
    assert len(err.splitlines()) == 1, err


def test_an_error_that_ranks_share_is_printed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun does
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(held.port))
    monkeypatch.setattr("gemmule.cli.processes._WAIT", 0.2)

    def printed(rank: int, message: str) -> str:
        monkeypatch.setenv("RANK", str(rank))
        print_error(message)
        return capsys.readouterr().err

    assert printed(1, "bad") == "gemmule: bad\n"  # the first rank has none
    assert printed(2, "bad") == ""
    assert printed(0, "bad") == "gemmule: bad\n"
    assert printed(1, "bad") == ""
    assert printed(1, "no disk") == "gemmule: no disk\n"
    assert printed(2, "no disk") == ""
    assert printed(1, "rank 0 of 2 (here) failed, which ends this one: ConfigError: bad") == ""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert printed(1, "bad") == "gemmule: bad\n"
    assert printed(0, "1 of 1 Wh are used; stopped; saved") != ""
    assert printed(1, "stopped; saved") == ""


@pytest.mark.slow
def test_nproc_trains_as_one_process(config: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train = [sys.executable, "-m", "gemmule", "train", config, "--out", out, "--json"]
    code, printed, err = ended(start(*train, "--nproc", 2))
    assert code == 0, err
    result = json.loads(printed)  # printed once
    assert result == json.loads((out / "result.json").read_text())
    assert model(out) == model(alone)
    assert len((out / "ledger.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_resumes(
    config: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "gemmule", "train"]
    process = start(*LAUNCHER, *command, config, "--out", out)
    wait_for_step(out, 40, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 0, err
    assert model(out) == model(alone)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_all(
    number: signal.Signals, config: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ["--standalone", "--nproc-per-node=2", "-m", "gemmule", "train"]
    process = start(*LAUNCHER, *command, config, "--out", out)
    wait_for_step(out, 40, process)
    # A terminal sends Ctrl-C to the whole group; torchrun passes it on once more.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    code, _, err = ended(process)
    assert code != 0
    assert err.count("everything is saved in") >= 1, err
    assert not (out / "result.json").exists()
    code, _, err = ended(start(*LAUNCHER, *command, "--resume", "--out", out))
    assert code == 0, err
    assert model(out) == model(alone)


@pytest.mark.slow
def test_two_nodes(config: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    place = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    place += [f"--master-port={free_port()}"]
    nodes = [
        start(*LAUNCHER, *place, f"--node-rank={n}", "-m", "gemmule", "train", config, "--out", out)
        for n in range(2)
    ]
    for code, _, err in [ended(node) for node in nodes]:
        assert code == 0, err
    assert model(out) == model(alone)
    carbon = json.loads((out / "carbon.json").read_text())
    assert carbon["how"]["machines"] == "the sum of 2"


@pytest.mark.slow
def test_a_killed_rank_of_two_nodes_is_started_again_and_resumes(
    config: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    place = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d"]
    place += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=both"]
    place += ["--local-addr=127.0.0.1"]
    nodes = [
        start(*LAUNCHER, *place, "-m", "gemmule", "train", config, "--out", out) for _ in range(2)
    ]
    wait_for_step(out, 40, nodes[0])
    os.kill(ranks_of(nodes[1])[0], signal.SIGKILL)
    for code, _, err in [ended(node) for node in nodes]:
        assert code == 0, err
    assert model(out) == model(alone)


@pytest.fixture(scope="module")
def record(
    prepared: Path, pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[object]:
    """A command that records for some seconds, but for --out."""
    teacher = tmp_path_factory.mktemp("teacher")
    save_model(random_model(tiny_config(vocab_size=pieces.vocab_size)), pieces, teacher)
    further = ["dtype=float32", "compile=false", "device=cpu", "threads=1", "batch_size=1"]
    settings = [word for setting in further for word in ("--set", setting)]
    return ["record", teacher, "--data", prepared, "--seq-len", 6, *settings, "--out"]


def shards(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "shards").iterdir()}


@pytest.mark.slow
def test_nproc_records_as_one_process(record: list[object], tmp_path: Path) -> None:
    gemmule = [sys.executable, "-m", "gemmule"]
    code, _, err = ended(start(*gemmule, *record, tmp_path / "one"))
    assert code == 0, err
    code, printed, err = ended(start(*gemmule, *record, tmp_path / "two", "--nproc", 2, "--json"))
    assert code == 0, err
    result = json.loads(printed)  # printed once
    assert result["missing_tokens"] == 0
    assert shards(tmp_path / "two") == shards(tmp_path / "one")
    (line,) = (tmp_path / "two" / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["tokens_in"] == result["tokens"]
    code, _, err = ended(start(*gemmule, *record, tmp_path / "two", "--nproc", 2, "--draws", 3))
    assert code == 2
    (said,) = err.splitlines()
    assert "is a record of something else (draws: 50 there, 3 now)" in said


@pytest.mark.slow
def test_a_recording_that_loses_a_rank(record: list[object], tmp_path: Path) -> None:
    gemmule, out = [sys.executable, "-m", "gemmule"], tmp_path / "two"
    process = start(*gemmule, *record, out, "--nproc", 2, "--set", "shard_minutes=1e-3")
    end = time.monotonic() + SECONDS
    while not list(out.glob("shards/*.targets")) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 1
    first, second = sorted(err.splitlines())
    assert first.startswith("gemmule: rank 1 of 2 is gone: it was killed, or its machine is")
    assert second == "gemmule: rank 1 was ended by SIGKILL"
    code, printed, err = ended(start(*gemmule, *record, out, "--json"))
    assert code == 0, err
    assert json.loads(printed)["missing_tokens"] == 0
