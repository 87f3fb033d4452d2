"""`gemmule ablate` as a user types it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from gemmule import cli
from gemmule.ablate import run_sweep as module
from gemmule.ablate.ablations import CATALOGUE
from gemmule.errors import ConfigError, TrainingError


def ablate(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["ablate", *(str(a) for a in arguments)])


def test_help_and_list_name_every_ablation() -> None:
    shown = ablate("--help").output.split("Arguments")[0]
    for name, ablation in CATALOGUE.items():
        line = next(line for line in shown.splitlines() if line.strip().startswith(f"{name} "))
        assert ("table" in line) == (ablation.table is not None), line
        if ablation.table:
            assert f"table {ablation.table[1:]})" in line
    listed = json.loads(ablate("list", "--json").stdout)
    assert [entry["name"] for entry in listed] == list(CATALOGUE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sizes"], "no ablation 'sizes'; did you mean 'size'"),
        (["size"], "needs --data, .*and --out"),
        (["size", "--data", "d", "--out", "o", "--seeds", 0], "seeds = 0: "),
        (["size", "--data", "d", "--out", "o", "--set", "steps=9"], "takes --tokens for it"),
    ],
)
def test_mistakes(arguments: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        raise ablate(*arguments).exception or AssertionError("no mistake was seen")


def test_a_sweep_with_a_failure(
    prepared: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["distilled", "--data", prepared, "--out", tmp_path / "sweep", "--teacher", teacher,
               "--student", "0.1m", "--seeds", 1, "--tokens", 60, "--set", "data.batch_size=2",
               "--set", "data.seq_len=16", "--set", "evaluation.heldout_tokens=64",
               "--set", "runtime.compile=false", "--set", "runtime.threads=1",
               "--set", "runtime.dtype=float32"]  # fmt: skip
    monkeypatch.setattr(module, "run_training", _fail)
    done = ablate(*command)
    assert done.exit_code == 1
    monkeypatch.undo()
    monkeypatch.setattr("gemmule.runs.carbon.start_tracker", _fail)
    done = ablate(*command, "--json")
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert results == json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert results["failed"] == 0
    assert results["cells"][0]["figures"]["train_tokens"] == 64


def _fail(*_: Any, **__: Any) -> None:
    raise TrainingError("diverged")
