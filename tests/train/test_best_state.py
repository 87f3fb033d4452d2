"""Runs that keep the state with the lowest validation loss, and end when it no longer falls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemmule import files
from gemmule.checkpoints.load import load_model
from gemmule.errors import ConfigError
from gemmule.runs.metrics import read_metrics
from gemmule.train import loop, recipe
from gemmule.train.config import RunConfig
from gemmule.train.probe import Probe
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
LOSSES = {1: 5.0, 2: 4.0, 3: 3.0, 4: 3.5, 5: 3.2, 6: 2.9, 7: float("nan"), 8: 3.1}
pytestmark = pytest.mark.usefixtures("no_meter")


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses as in LOSSES, at every step."""
    probe = Probe(
        "validation", 1, lambda step: {"nats_per_token": LOSSES[step]}, label="split",
        best="nats_per_token",
    )  # fmt: skip
    monkeypatch.setattr(recipe, "validation_probe", lambda *_: probe)


def settings(tiny: Settings, steps: int = 8, **evaluation: Any) -> RunConfig:
    return RunConfig.parse(
        tiny(steps=steps, evaluation={"tokens": 64, "heldout_tokens": 64, **evaluation},
             checkpoint={"every": 2, "keep": 1})
    )  # fmt: skip


def states(out: Path) -> set[str]:
    return {path.name for path in (out / "checkpoints").iterdir()}


def test_the_best_state_becomes_the_model(tiny: Settings, tmp_path: Path) -> None:
    every = settings(tiny)
    every = every.model_copy(
        update={"checkpoint": every.checkpoint.model_copy(update={"every": 1, "keep": 8})}
    )
    assert "best" not in run_training(every, tmp_path / "all")
    out = tmp_path / "best"
    result = run_training(settings(tiny, keep="best"), out)
    assert result["best"] == {"step": 6, "tokens": 6 * 4 * 24, "loss": 2.9}
    assert result["train_tokens"] == 8 * 4 * 24
    assert states(out) == {"step-6", "step-8"}
    expected = load_file(tmp_path / "all" / "checkpoints" / "step-6" / "state.safetensors")
    model, _ = load_model(out, torch.float32)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[f"model.{name}"]), name


def test_it_ends_when_patience_does(tiny: Settings, tmp_path: Path) -> None:
    result = run_training(settings(tiny, keep="best", patience=2), tmp_path / "run")
    assert result["best"]["step"] == 3
    assert result["train_tokens"] == 5 * 4 * 24
    assert max(line["step"] for line in read_metrics(tmp_path / "run")) == 5
    assert states(tmp_path / "run") == {"step-3", "step-5"}


class Killed(BaseException):
    """Nothing in gemmule may catch it."""


@pytest.mark.parametrize("step", [2, 4, 5, 6])
def test_a_killed_run_ends_in_the_same_state(
    step: int, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, at and after the best one, and when training is done but nothing is saved of it."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    config = settings(tiny, keep="best", patience=2)
    expected = run_training(config, whole)
    calls = 0

    def killed(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise Killed
        return plain(*args)

    owner, name = (loop, "clip_gradients") if step < 6 else (files, "atomic_dir")
    plain = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(Killed):
            run_training(config, out)
    assert not (out / "result.json").exists()
    result = run_training(config, out, resume=True)
    assert result["best"] == expected["best"]
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


def test_settings_that_make_no_sense(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="set keep = 'best', or leave it out"):
        settings(tiny, patience=2)
    probe = Probe("validation", 1, lambda _: {"reward": 1.0}, label="split")
    monkeypatch.setattr(recipe, "validation_probe", lambda *_: probe)
    with pytest.raises(ConfigError, match="'pretrain' has no validation loss to choose by"):
        run_training(settings(tiny, keep="best"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
