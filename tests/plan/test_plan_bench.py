"""The bench at toy size: it runs, and writes what it promises. Ratios are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.config import preset
from gemmule.model.gemma import Gemma
from gemmule.model.tokenizer import Tokenizer

BENCH = Path(__file__).parents[2] / "bench/plan.py"


def bench(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCH), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_predictions_stand_beside_real_runs(
    prepared: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_model(Gemma(preset("1m", vocab_size=512)), pieces, tmp_path / "teacher")
    out = tmp_path / "report.json"
    done = bench(
        "--toy", "--data", prepared, "--teacher", tmp_path / "teacher", "--seconds", 300,
        "--json", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert list(report["modes"]) == ["toy-scratch", "toy-distilled"]
    for name, figures in report["modes"].items():
        assert figures["measured_itself"]
        ratio = figures["predicted_peak_mb"] / figures["peak_mb"]
        assert figures["memory_predicted_over_measured"] == pytest.approx(ratio, rel=1e-3)
        assert report["ratios"][name].keys() == {
            "memory_predicted_over_measured", "time_predicted_over_measured",
        }  # fmt: skip
        assert 0.5 < ratio < 2


def test_a_mistake_is_one_line() -> None:
    done = bench("--cases", "2m")
    assert done.returncode == 2
    assert "no such case in 2m; there are: 1m-b16, 1m-b8" in done.stderr
