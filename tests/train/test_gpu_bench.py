"""The benchmark for a GPU at toy size, without one: it runs, and writes what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench/gpu.py"


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCH), "--toy", "--device", "cpu", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["losses"]["cpu float32, block"]["apart"] < 1e-6
    assert report["losses"]["cpu bfloat16, block"]["apart"] > 1e-6
    train, decode = report["train, block"], report["decode"]
    assert train["mfu"] > 0
    assert train["losses"][-1] < train["losses"][0]
    assert decode["share_of_bandwidth"] > 0
