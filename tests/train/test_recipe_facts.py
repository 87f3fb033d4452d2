"""A run says what a recipe did to its text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule.train.config import RunConfig
from gemmule.train.run import run_training


@pytest.mark.usefixtures("no_meter")
def test_a_run_says_what_its_text_was_decontaminated_against(
    prepared: Path, tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    data = shutil.copytree(prepared, tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    benchmarks = [{"name": "ARC-e", "sha256": "12" * 32, "items": 9, "too_short": 1}]
    manifest["recipe"] = {
        "stages": [{"name": "decontaminate", "n": 13, "benchmarks": benchmarks}],
        "funnel": {"decontaminate": {"dropped": {"text of a benchmark": [3, 900]}, "counts": {}}},
    }
    (data / "manifest.json").write_text(json.dumps(manifest))
    settings = tiny(steps=1, data={"path": str(data)}, checkpoint={"every": 1000})
    run_training(RunConfig.parse(settings), tmp_path / "run")
    told = json.loads((tmp_path / "run/manifest.json").read_text())["data"]
    assert told["decontaminated"] == {"n": 13, "benchmarks": benchmarks, "dropped": 3}
    assert "redacted" not in told
