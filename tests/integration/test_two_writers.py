"""Of two processes that would write one folder, the second is refused and told of the first."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from gemmule.ablate.config import SweepConfig
from gemmule.ablate.run_sweep import run_ablation
from gemmule.checkpoints.convert import convert
from gemmule.checkpoints.hf.writer import save_model
from gemmule.errors import OutputError
from gemmule.evals.benchmarks.run_benchmarks import run_eval
from gemmule.evals.benchmarks.settings import EvalSettings
from gemmule.evals.memorization.run_memorization import run_memorization
from gemmule.evals.memorization.settings import Settings as Passages
from gemmule.model.tokenizer import Tokenizer
from gemmule.quantize import quantize
from gemmule.quickstart import QuickstartConfig, run_quickstart
from gemmule.runs.lock import locked, locked_output
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from models import TINY, random_model, tiny_config

Settings = Callable[..., dict[str, Any]]

COMMAND = """
import sys
import gemmule.runs.carbon
def no_tracker(*_):
    raise RuntimeError("left out by the test")
gemmule.runs.carbon.start_tracker = no_tracker
from gemmule.cli import main
main(sys.argv[1:])
"""


def start(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_steps(process: "subprocess.Popen[str]", run: Path, steps: int) -> None:
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def settings(tiny: Settings, tmp_path: Path) -> Path:
    """Settings of a run that does not end by itself."""
    path = tmp_path / "settings.toml"
    path.write_text(tomli_w.dumps(tiny(steps=1_000_000)))
    return path


@pytest.fixture
def training(settings: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = start("train", settings, "--out", tmp_path / "run")
    try:
        wait_for_steps(process, tmp_path / "run", 3)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_is_being_trained(
    training: "subprocess.Popen[str]", settings: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    others = [start(command, "--resume", "--out", run) for command in ("train", "distill")]
    for second in others:
        _, message = second.communicate(timeout=120)
        assert second.returncode == 2, message
        assert len(message.splitlines()) == 1
        assert f"{run} is being written by process {training.pid} (-c train " in message
        assert "since 20" in message
    training.send_signal(signal.SIGTERM)
    training.communicate(timeout=120)
    assert training.returncode == 130
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert not (run / ".lock").exists()


def test_a_run_whose_training_was_killed(training: "subprocess.Popen[str]", tmp_path: Path) -> None:
    run = tmp_path / "run"
    training.kill()
    training.communicate(timeout=120)
    assert (run / ".lock").exists()
    before = (run / "metrics.jsonl").read_bytes().count(b"\n")
    resumed = start("train", "--resume", "--out", run)
    try:
        wait_for_steps(resumed, run, before + 2)
    finally:
        resumed.send_signal(signal.SIGTERM)
        resumed.communicate(timeout=120)
    assert resumed.returncode == 130


@pytest.fixture(scope="module")
def model(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(random_model(tiny_config(TINY, vocab_size=pieces.vocab_size)), pieces, folder)
    return folder


def test_a_quickstart(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("minutes = 1.0\n")
    with locked(tmp_path), pytest.raises(OutputError, match="is being written by process"):
        run_quickstart(QuickstartConfig(), tmp_path, resume=True)


def test_a_record(model: Path, prepared: Path, tmp_path: Path) -> None:
    settings = {
        "teacher": str(model), "data": prepared, "seq_len": 24, "tokens": 200, "dtype": "float32",
        "compile": False,
    }  # fmt: skip
    with locked(tmp_path), pytest.raises(OutputError, match="is being written by process"):
        record(RecordConfig.parse(settings), tmp_path)
    with locked(tmp_path, "1/2"):
        record(RecordConfig.parse(settings | {"part": "2/2"}), tmp_path)
        with pytest.raises(OutputError, match="is being written by process"):
            record(RecordConfig.parse(settings | {"part": "1/2"}), tmp_path)


def test_a_sweep(prepared: Path, tmp_path: Path) -> None:
    sweep = SweepConfig(ablation="size", data=prepared, tokens=100, seeds=1)
    with locked(tmp_path), pytest.raises(OutputError, match="is being written by process"):
        run_ablation(sweep, tmp_path)


def test_exports(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked_output(out):
        with pytest.raises(OutputError, match="is being written by process"):
            convert(model, out, "hf")
        with pytest.raises(OutputError, match="is being written by process"):
            quantize(model, "int8", out)
    convert(model, out, "hf", verify=False)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_results_of_evaluations(model: Path, prepared: Path, tmp_path: Path) -> None:
    with (
        locked_output(tmp_path / "memorization.json"),
        pytest.raises(OutputError, match=r"memorization\.json is being written by process"),
    ):
        run_memorization(
            str(model), Passages(probes=2, prompt_tokens=4, continuation_tokens=4),
            data=prepared, out=tmp_path,
        )  # fmt: skip
    pytest.importorskip("lm_eval")
    with (
        locked_output(tmp_path / "benchmarks.json"),
        pytest.raises(OutputError, match=r"benchmarks\.json is being written by process"),
    ):
        run_eval([str(model)], EvalSettings(suite="quick"), out=tmp_path)
