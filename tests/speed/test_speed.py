"""gemmule bench: figures are there and fit together; times themselves are never judged."""

import json
import time
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

from gemmule import cli
from gemmule.checkpoints.hf.writer import save_model
from gemmule.errors import ConfigError
from gemmule.infer.runners.native_runner import NativeRunner
from gemmule.infer.runners.torch_runner import TorchRunner
from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer
from gemmule.quant import native
from gemmule.speed import machine_peak, roofline
from gemmule.speed.busy import busy_processes
from gemmule.speed.settings import SpeedRequest
from models import random_model


@pytest.fixture(scope="module")
def model(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("speed") / "model"
    save_model(Gemma(preset("1m", vocab_size=512)), pieces, folder)
    return folder


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_peak, "buffer_size", lambda: 2**22)


@pytest.mark.parametrize("quantize", [None, "int4"])
def test_the_command(model: Path, quantize: str | None) -> None:
    arguments = ["bench", str(model), "--prompt", "40", "--context", "16", "--batch", "1,3"]
    arguments += ["--threads", "1", *(["--quantize", quantize] if quantize else [])]
    done = CliRunner().invoke(cli.app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["model"]["format"] == (quantize or "f32")
    assert report["model"]["cache"] == ("float16" if quantize and native.available() else "float32")
    assert [row["batch"] for row in report["decode"]] == [1, 3]
    for row in (*report["decode"], report["prefill"], report["long_context"]):
        share = row["tokens_per_second"] / row["floor_tokens_per_second"]
        assert row["share_of_floor"] == pytest.approx(share)
    assert report["long_context"]["context"] > 64
    assert report["load_seconds"] > 0
    assert report["peak_bytes"] > report["model"]["weight_bytes"]
    assert report["machine"]["threads"] == 1
    shown = CliRunner().invoke(cli.app, arguments).output
    assert "decode after 16, batch size 3" in shown
    assert "peak memory" in shown


def test_next_to_busy_processes(model: Path) -> None:
    arguments = ["bench", str(model), "--prompt", "40", "--context", "16", "--batch", "1,3"]
    arguments += ["--threads", "1", "--beside", "2"]
    report = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).stdout)
    busy = report["busy"]
    assert busy["processes"] == 2
    assert [row["batch"] for row in busy["decode"]] == [1, 3]
    assert all(share > 0 for share in (busy["prefill"], *(r["share"] for r in busy["decode"])))


def test_busy_processes_use_cores_and_end() -> None:
    own = psutil.Process()
    earlier = set(own.children())
    with busy_processes(2):
        others = [child for child in own.children() if child not in earlier]
        before = [sum(other.cpu_times()[:2]) for other in others]
        end = time.monotonic() + 60
        while any(
            sum(other.cpu_times()[:2]) == used for other, used in zip(others, before, strict=True)
        ):
            assert time.monotonic() < end, "they do nothing"
            time.sleep(0.01)
    assert len(others) == 2
    assert not any(other.is_running() for other in others)


@pytest.mark.parametrize("cache", ["float32", "float16", "int8"])
def test_a_runner_says_how_it_keeps_keys_and_values(cache: str) -> None:
    module = random_model()
    if native.available():
        assert NativeRunner(module, cache=cache, threads=1).cache_format == cache
    assert TorchRunner(module).cache_format == "float32"
    assert TorchRunner(module.to(torch.bfloat16)).cache_format == "bfloat16"


def test_roofline_of_a_2b() -> None:
    config = preset("2b")
    load = roofline.ModelLoad(config, 1_500_000_000, 4096, "int4", "int8")
    assert roofline.matrix_weights(config) == 2_614_099_968 + 0 * config.hidden_size
    # 13 local layers see 4096 positions, 13 global ones all.
    assert load.cache_bytes(8192) == 4096 * 13 * (4096 + 8192)
    machine = roofline.MachineLimits(30e9, 1e12)
    one, many = load.step(machine, 1, 128), load.step(machine, 1000, 128)
    assert (one.limit, many.limit) == ("memory", "arithmetic")
    assert one.seconds == one.bytes_read / 30e9
    assert load.prompt(machine, 512).limit == "arithmetic"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "1,x"], "whole numbers with commas"),
        (["--batch", "0"], "each must be from 1 to 256"),
        (["--threads", "0"], "threads = 0"),
        (["--beside", "-1"], "beside = -1"),
        (["--prompt", "5000"], "this model's context is 1024 tokens"),
        (["--quantize", "int3"], "int3"),
    ],
)
def test_mistakes(model: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["bench", str(model), *arguments])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)


def test_a_request_always_decodes_one_sequence_too() -> None:
    assert SpeedRequest(model="x", batch="8,2").batch == (1, 2, 8)  # type: ignore[arg-type]
