"""Whole preference runs: the first step, resuming, what is stored."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gemmule import files
from gemmule.checkpoints.load import open_checkpoint
from gemmule.errors import CheckpointError, ConfigError, DataError, Interrupted
from gemmule.model.tokenizer import Tokenizer
from gemmule.posttrain import reference
from gemmule.posttrain.objectives import preference
from gemmule.runs.metrics import read_metrics
from gemmule.train.config import RunConfig, load_run_config
from gemmule.train.run import run_training
from judged_answers import CONTEXT, labeled_folder, pair_folder, parent

pytestmark = pytest.mark.usefixtures("no_meter")
Settings = Callable[..., dict[str, Any]]
METHODS = ("dpo", "ipo", "simpo", "kto")


@pytest.fixture(scope="module")
def inputs(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("judged")
    return {
        "pairs": pair_folder(pieces, folder / "pairs").dataset.path,
        "labels": labeled_folder(pieces, folder / "labels").dataset.path,
        "parent": parent(pieces, folder / "parent"),
    }


def settings(inputs: Mapping[str, Path], folder: str = "pairs", **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "steps": 6,
        "log_every": 1,
        "data": {
            "path": str(inputs[folder]),
            "seq_len": CONTEXT,
            "batch_size": 4,
            "micro_batch_size": 2,
        },
        "model": {"init": str(inputs["parent"])},
        "optimizer": {"learning_rate": 0.002, "embedding_learning_rate": 0.002},
        "schedule": {"warmup": 0, "decay": 0},
        "objective": {"kind": "preference"},
        "evaluation": {"every": 3},
        "checkpoint": {"every": 2},
        "runtime": {"compile": False, "dtype": "float32", "threads": 1},
    }
    for name, value in changes.items():
        merged = isinstance(value, dict) and name in values
        values[name] = {**values[name], **value} if merged else value
    return RunConfig.parse(values)


def lines(run: Path) -> list[dict[str, Any]]:
    return [m for m in read_metrics(run) if "loss" in m]


def weights(run: Path) -> bytes:
    return (run / "model/model.safetensors").read_bytes()


FIRST_LOSS = {"dpo": math.log(2), "ipo": 25.0, "kto": 0.5}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_first_step_knows_that_nothing_has_changed(
    inputs: Mapping[str, Path], tmp_path: Path, method: str, micro_batch: int
) -> None:
    config = settings(
        inputs, objective={"method": method}, steps=1, data={"micro_batch_size": micro_batch}
    )
    run_training(config, tmp_path / "run")
    first = lines(tmp_path / "run")[0]
    if method == "simpo":
        assert not (tmp_path / "run/reference.safetensors").exists()
        return
    assert first["loss"] == FIRST_LOSS[method]
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    assert [first[name] for name in names] == [0, 0, 0]
    assert first["logps/chosen"] != first["logps/rejected"]
    assert first["lengths/chosen"] != first["lengths/rejected"]


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_first_step_of_an_adapter(
    inputs: Mapping[str, Path], tmp_path: Path, kind: str
) -> None:
    config = settings(
        inputs, adapter={"kind": kind, "rank": 4}, optimizer={"name": "adamw"}, steps=2
    )
    run_training(config, tmp_path / "run")
    first, second = lines(tmp_path / "run")
    assert first["loss"] == math.log(2)
    assert second["loss"] != first["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_to_prefer(inputs: Mapping[str, Path], tmp_path: Path, method: str) -> None:
    config = settings(inputs, objective={"method": method}, steps=30, data={"batch_size": 8})
    result = run_training(config, tmp_path / "run")
    logged = lines(tmp_path / "run")
    assert logged[-1]["rewards/margins"] > logged[0]["rewards/margins"]
    assert result["accuracy"]["low"] > 0.5
    assert result["split"] == "heldout"
    manifest = files.read_json(tmp_path / "run/manifest.json")
    assert (manifest["kind"], manifest["objective"]["method"]) == ("preference", method)
    assert manifest["parent"]["path"] == str(inputs["parent"])
    measured = [m for m in read_metrics(tmp_path / "run") if m.get("split") == "validation"]
    assert measured[-1]["rewards/accuracies"] > 0.5


def test_single_answers_with_labels(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    config = settings(
        inputs, "labels", objective={"method": "kto"}, steps=30, data={"batch_size": 8}
    )
    result = run_training(config, tmp_path / "run")
    assert lines(tmp_path / "run")[0]["loss"] == 0.5
    assert result["accuracy"]["value"] > 0.8
    with pytest.raises(DataError, match="holds conversations: give a folder of pairs"):
        run_training(settings(inputs, "labels"), tmp_path / "other")


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_in_the_same_bytes(
    inputs: Mapping[str, Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(inputs, objective={"method": method})
    run_training(config, tmp_path / "whole")
    plain, calls = preference.label_log_likelihoods, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        if len(calls) == 8:
            signal.raise_signal(signal.SIGTERM)
        return plain(*args, **options)

    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(preference, "label_log_likelihoods", interrupted)
        run_training(config, out)
    with monkeypatch.context() as patch:  # the stored reference is used, not computed again
        patch.setattr(reference, "_values", lambda *_: 1 / 0)
        run_training(load_run_config(out / "config.toml"), out, resume=True)
    assert weights(out) == weights(tmp_path / "whole")
    assert [m["loss"] for m in lines(out)] == [m["loss"] for m in lines(tmp_path / "whole")]


def test_the_reference_holds_what_the_run_uses(
    inputs: Mapping[str, Path], tmp_path: Path, pieces: Tokenizer
) -> None:
    run_training(settings(inputs, steps=2), tmp_path / "run")
    values = load_file(tmp_path / "run/reference.safetensors")
    assert set(values) == {"train", "validation", "heldout"}
    computed = ~values["train"].isnan()
    assert computed.sum() == 2 * 2 * 4
    assert torch.equal(computed[0::2], computed[1::2])
    assert not values["heldout"].isnan().any()


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_references_pass_is_counted_and_evaluations_are_not(
    inputs: Mapping[str, Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = reference._values, []

    def values(model: Any, group: Any, runtime: Any, tokens: int, label: str) -> Any:
        if label.split(", ")[1] in ("train", "mismatched"):
            seen.append(sum(len(c) for c in group if c is not None))
        time.sleep(0.05)
        return plain(model, group, runtime, tokens, label)

    monkeypatch.setattr(reference, "_values", values)
    out, config = tmp_path / "run", settings(inputs, objective={"method": method}, steps=2)
    result = run_training(config, out)
    with open_checkpoint(inputs["parent"]) as checkpoint:
        forward = checkpoint.config.forward_flops_per_token(CONTEXT)
    passes = {"dpo": 3, "kto": 4}[method]  # of a step's tokens
    steps = passes * forward * result["train_tokens"]
    assert sum(seen) > 0
    assert result["train_flops"] == pytest.approx(steps + forward * sum(seen), rel=1e-12)
    in_steps = read_metrics(out)[-1]["seconds"]
    counted = len(seen) * 0.05
    assert counted - 0.01 <= result["seconds"] - in_steps
    # Resumed, the run knows what the reference has cost.
    (out / "result.json").unlink()
    again = run_training(load_run_config(out / "config.toml"), out, resume=True)
    assert [again[k] for k in ("train_flops", "seconds")] == [
        result[k] for k in ("train_flops", "seconds")
    ]


def test_a_damaged_reference_is_named(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_training(settings(inputs, steps=2), out)
    (out / "result.json").unlink()
    (out / "reference.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"reference.safetensors .*: delete it"):
        run_training(load_run_config(out / "config.toml"), out, resume=True)


def test_settings_are_checked(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gamma is a setting of simpo, and the method is dpo"):
        settings(inputs, objective={"gamma": 1.0})
    with pytest.raises(ConfigError, match="label_smoothing is a setting of dpo and simpo"):
        settings(inputs, objective={"method": "ipo", "label_smoothing": 0.1})
    with pytest.raises(ConfigError, match=r"set model\.init"):
        run_training(settings(inputs, model={"init": None}), tmp_path / "run")
    with pytest.raises(DataError, match=r"longer with their prompts than data\.seq_len = 12"):
        run_training(settings(inputs, data={"seq_len": 12}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
