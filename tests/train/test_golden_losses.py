"""Losses of small runs, equal to those of the version before runs had kinds (golden_losses.json).

On the machine that recorded them they are equal to the last bit. Another processor may sum in
another order, so they are compared to a relative 1e-6, which a change of the mathematics does not
pass. Two runs in this process are compared exactly.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule import files
from gemmule.data.prepare import prepare
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.metrics import read_metrics
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
GOLDEN = json.loads((Path(__file__).parent / "golden_losses.json").read_text(encoding="utf-8"))
TIMES = {"seconds", "tokens_per_second"}


@pytest.fixture(scope="module")
def parents(
    tiny: Settings, prepared: Path, text_folder: Path, other_pieces: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:  # fmt: skip
    """A teacher, one with another tokenizer, and a record of the first."""
    folder = tmp_path_factory.mktemp("parents")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(tiny(steps=8, seed=5)), folder / "teacher")
        data = {"path": str(prepare(text_folder, other_pieces, folder / "data").path)}
        run_training(RunConfig.parse(tiny(steps=8, seed=5, data=data)), folder / "foreign")
        recording = {
            "teacher": str(folder / "teacher"), "data": str(prepared), "seq_len": 24, "seed": 0,
            "tokens": 4800, "targets": {"kind": "sample", "draws": 20}, "dtype": "float32",
            "threads": 1, "compile": False, "device": "cpu",
        }  # fmt: skip
        record(RecordConfig.parse(recording), folder / "store")
    return {name: str(folder / name) for name in ("teacher", "foreign", "store")}


def settings(name: str, tiny: Settings, parents: dict[str, str]) -> dict[str, Any]:
    """The settings of one of the recorded runs."""
    teacher = {"teacher": parents["teacher"]}
    changes: dict[str, dict[str, Any]] = {
        "pretrain": {},
        "pretrain_cosine_adamw_init": {
            "model": {"init": parents["teacher"]},
            "optimizer": {"name": "adamw", "learning_rate": 0.003},
            "schedule": {"name": "cosine"},
        },
        "distill": {"objective": teacher},
        "distill_jsd_routed": {
            "objective": {
                **teacher, "loss": "jsd", "beta": 0.3, "temperature": 2.0, "alpha": 0.25,
                "route_above": 4.5,
            }
        },
        "distill_store": {"objective": {"targets": parents["store"], "alpha": 0.25}},
        "distill_cross_tokenizer": {
            "objective": {"teacher": parents["foreign"], "cross_tokenizer": True, "alpha": 0.5}
        },
    }  # fmt: skip
    return tiny(**changes[name])


def lines(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k not in TIMES} for m in read_metrics(run)]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in line.items() if not isinstance(v, str)}


@pytest.mark.usefixtures("no_meter")
@pytest.mark.parametrize("name", GOLDEN)
def test_losses_are_those_recorded(
    name: str, tiny: Settings, parents: dict[str, str], tmp_path: Path
) -> None:
    golden = GOLDEN[name]
    config = RunConfig.parse(settings(name, tiny, parents))
    result = run_training(config, tmp_path / "run")
    measured = lines(tmp_path / "run")
    assert [list(m) for m in measured] == [list(m) for m in golden["metrics"]]
    for line, expected in zip(measured, golden["metrics"], strict=True):
        assert numbers(line) == pytest.approx(numbers(expected), rel=1e-6)
    assert {k: result[k] for k in golden["result"]} == pytest.approx(golden["result"], rel=1e-6)
    manifest = files.read_json(tmp_path / "run" / "manifest.json")
    assert manifest["objective"] == golden["objective"]
    run_training(config, tmp_path / "again")
    assert lines(tmp_path / "again") == measured
    ours, again = (tmp_path / run / "model/model.safetensors" for run in ("run", "again"))
    assert ours.read_bytes() == again.read_bytes()
