"""WARP's loop over runs and iterations."""

import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule import files
from gemmule.checkpoints.checkpoint import weights_fingerprint
from gemmule.checkpoints.load import load_model
from gemmule.config import Config
from gemmule.errors import CheckpointError, ConfigError, Interrupted, OutputError
from gemmule.posttrain.merging import warp as module
from gemmule.posttrain.merging.merge import merge
from gemmule.posttrain.merging.warp import WarpConfig, read_settings, warp
from gemmule.train import loop
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training

Settings = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.usefixtures("no_meter")
LOOP = WarpConfig(runs=2, iterations=2, eta=0.3)


@pytest.fixture(scope="module")
def start(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        run_training(RunConfig.parse(tiny(steps=4)), out)
    return out


@pytest.fixture(scope="module")
def config(tiny: Settings, start: Path) -> RunConfig:
    return RunConfig.parse(tiny(steps=3, model={"init": str(start)}, checkpoint={"every": 1}))


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("warp") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        warp(config, LOOP, out)
    return out


def weights(run: Path) -> str:
    return weights_fingerprint(load_model(run)[0])


def init_of(run: Path) -> str:
    return str(files.read_toml(run / "config.toml")["model"]["init"])


def test_each_iteration_starts_on_the_way_to_the_merge_before(
    whole: Path, start: Path, tmp_path: Path
) -> None:
    first, second = whole / "iteration-1", whole / "iteration-2"
    assert {init_of(first / f"run-{m}") for m in (1, 2)} == {str(start)}
    assert {init_of(second / f"run-{m}") for m in (1, 2)} == {str(first / "next")}
    seeds = [files.read_toml(f / r / "config.toml")["seed"]
             for f in (first, second) for r in ("run-1", "run-2")]  # fmt: skip
    assert seeds == [0, 1, 2, 3]
    runs = [first / "run-1", first / "run-2"]
    merge(runs, tmp_path / "slerp", base=start, method="slerp")
    assert weights(tmp_path / "slerp") == weights(first / "merge")
    merge([first / "merge"], tmp_path / "next", base=start, method="lerp", eta=0.3)
    ours, theirs = (load_model(f)[0].state_dict() for f in (tmp_path / "next", first / "next"))
    assert all((ours[n] - theirs[n]).abs().max() < 1e-7 for n in ours)
    assert weights(whole) == weights(second / "merge")
    manifest = files.read_json(whole / "manifest.json")
    assert manifest["kind"] == "merge"
    assert [p["role"] for p in manifest["parents"]] == ["model", "model", "base"]
    assert not (second / "next").exists()


@pytest.mark.parametrize("kill", [2, 5, 8])
def test_a_killed_loop_ends_in_the_same_bytes(
    kill: int, whole: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "whole"
    calls, plain = 0, loop.accumulate

    def accumulate(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill:
            signal.raise_signal(signal.SIGTERM)
        return plain(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "accumulate", accumulate)
        warp(config, LOOP, out)
    assert not (out / "result.json").exists()
    saved, settings = read_settings(out)
    assert settings == LOOP
    result = warp(saved, settings, out, resume=True)
    assert weights(out) == weights(whole)
    assert result["layers"] == files.read_json(whole / "result.json")["layers"]
    assert warp(saved, settings, out, resume=True) == result  # finished: left as it is


def test_a_stop_in_the_last_step_of_a_run_stops_the_loop(
    whole: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has done all its steps, and the next one must not begin."""
    out, plain, calls = tmp_path / "whole", loop.accumulate, itertools.count(1)

    def accumulate(*arguments: Any) -> Any:
        if next(calls) == config.steps:
            signal.raise_signal(signal.SIGTERM)
        return plain(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 3 of 3"):
        patch.setattr(loop, "accumulate", accumulate)
        warp(config, LOOP, out)
    assert not (out / "iteration-1/run-2").exists()
    warp(*read_settings(out), out, resume=True)
    assert weights(out) == weights(whole)


def test_a_stop_after_the_last_check_of_a_run_stops_the_loop(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop._save

    def save(run: Any, states: Any, recipe: Any, optimizers: Any, state: Any, world: Any) -> None:
        plain(run, states, recipe, optimizers, state, world)
        if state.step == config.steps:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(loop, "_save", save)
        warp(config, LOOP, tmp_path / "out")
    assert not (tmp_path / "out/iteration-1/run-2").exists()


def test_a_loop_killed_in_a_merge(
    whole: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "whole"

    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(module, "merge_into", stopped)
        warp(config, LOOP, out)
    trained: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_training", lambda _, path, **__: trained.append(path))
        warp(config, LOOP, out, resume=True)
    assert not trained  # nothing is done twice
    assert weights(out) == weights(whole)


def test_a_loop_killed_before_it_has_its_settings(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Interrupted("killed")

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Config, "save", killed)
        warp(config, LOOP, tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(module, "run_training", killed)
        warp(config, LOOP, tmp_path / "out")
    assert read_settings(tmp_path / "out")[1] == LOOP
    with pytest.raises(OutputError, match="add --resume to continue the loop there"):
        warp(config, LOOP, tmp_path / "out")


def test_what_cannot_be_started_or_resumed(tiny: Settings, start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set model\.init"):
        warp(RunConfig.parse(tiny()), LOOP, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="not started by gemmule warp"):
        read_settings(start)
    with pytest.raises(ConfigError, match="runs"):
        WarpConfig.parse({"runs": 1})
