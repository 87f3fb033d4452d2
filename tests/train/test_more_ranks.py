"""Four ranks, groups of two, what goes together with shards, and runs handed on between worlds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_two_ranks import SCRIPT, SHARDS, apart, in_ranks, losses

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import Tokenizer
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from models import random_model, tiny_config
from ranks import run_ranks

Settings = Callable[..., dict[str, Any]]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_meter")]
BASE: dict[str, Any] = {"steps": 6, "runtime": {"device": "cpu"}}


def alone(settings: dict[str, Any], out: Path, **options: Any) -> Path:
    run_training(RunConfig.parse(settings), out, **options)
    return out


@pytest.mark.parametrize("degree", [1, -1, 2])
def test_four_ranks_train_as_one_process(degree: int, tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(**BASE)
    settings["parallel"] = {"data_parallel_shard_degree": degree}
    in_ranks([{"settings": settings, "out": str(tmp_path / "four")}], tmp_path, 4)
    whole = alone(settings, tmp_path / "alone")
    assert losses(tmp_path / "four") == pytest.approx(losses(whole), rel=1e-5)
    assert apart(tmp_path / "four", whole) < 1e-4


@pytest.mark.parametrize("degree", [1, -1])
def test_a_run_goes_from_two_ranks_to_four_and_to_one(
    degree: int, tiny: Settings, tmp_path: Path
) -> None:
    settings = tiny(**BASE, parallel={"data_parallel_shard_degree": degree})
    run: dict[str, Any] = {"settings": settings, "out": str(tmp_path / "run")}
    (first,) = in_ranks([{**run, "stop_at": 1}], tmp_path, 2)
    assert "stopped after step 2 of 6" in first
    (second,) = in_ranks([{**run, "stop_at": 1, "resume": True}], tmp_path, 4)
    assert "stopped after step 4 of 6" in second
    alone(settings, tmp_path / "run", resume=True)
    whole = alone(settings, tmp_path / "alone")
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-5)
    assert apart(tmp_path / "run", whole) < 1e-4


def test_shards_are_resumed_from_a_single_file(tiny: Settings, tmp_path: Path) -> None:
    """The states of one process, or of ranks with whole weights, and the other way round."""
    settings = tiny(**BASE, parallel=SHARDS)
    whole = alone(settings, tmp_path / "alone")
    out = tmp_path / "run"
    in_ranks([{"settings": tiny(**BASE), "out": str(out), "stop_at": 2}], tmp_path)
    config = (out / "config.toml").read_text()
    assert "data_parallel_shard_degree = 1" in config
    (out / "config.toml").write_text(config.replace("shard_degree = 1", "shard_degree = -1"))
    (result,) = in_ranks([{"settings": settings, "out": str(out), "resume": True}], tmp_path)
    assert isinstance(result, dict), result
    assert losses(out) == pytest.approx(losses(whole), rel=1e-5)
    assert apart(out, whole) < 1e-4


@pytest.mark.parametrize("parallel", [{}, SHARDS])
def test_distillation_from_a_store(
    parallel: dict[str, Any], tiny: Settings, prepared: Path, pieces: Tokenizer, tmp_path: Path
) -> None:
    save_model(random_model(tiny_config(vocab_size=pieces.vocab_size)), pieces, tmp_path / "big")
    recorded = RecordConfig.parse(
        {
            "teacher": str(tmp_path / "big"), "data": prepared, "seq_len": 24, "batch_size": 4,
            "targets": {"draws": 12}, "dtype": "float32", "compile": False, "threads": 1,
        }
    )  # fmt: skip
    record(recorded, tmp_path / "store")
    objective = {"targets": str(tmp_path / "store")}
    settings = tiny(**BASE, objective=objective, parallel=parallel)
    in_ranks([{"settings": settings, "out": str(tmp_path / "two")}], tmp_path)
    whole = alone(settings, tmp_path / "alone")
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), rel=1e-5)
    assert apart(tmp_path / "two", whole) <= (1e-4 if parallel else 0)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_shards_with_activation_checkpointing(mode: str, tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(**BASE, parallel=SHARDS)
    settings["runtime"]["activation_checkpointing"] = mode
    plain = tiny(**BASE, parallel=SHARDS)
    in_ranks(
        [
            {"settings": settings, "out": str(tmp_path / mode)},
            {"settings": plain, "out": str(tmp_path / "plain")},
        ],
        tmp_path,
    )
    assert apart(tmp_path / mode, tmp_path / "plain") == 0


def test_shards_in_bfloat16(tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(**BASE, parallel=SHARDS)
    settings["runtime"]["dtype"] = "bfloat16"
    (result,) = in_ranks([{"settings": settings, "out": str(tmp_path / "two")}], tmp_path)
    assert isinstance(result, dict), result
    whole = alone(settings, tmp_path / "alone")
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), rel=5e-3)


@pytest.mark.usefixtures("compiler")
def test_shards_with_compiled_blocks(tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(**BASE, parallel=SHARDS)
    whole = alone(settings, tmp_path / "alone")
    settings["runtime"]["compile"] = True
    in_ranks([{"settings": settings, "out": str(tmp_path / "two")}], tmp_path)
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), rel=1e-3)


def test_what_needs_whole_weights_is_an_error(tiny: Settings, tmp_path: Path) -> None:
    settings = tiny(**BASE, parallel=SHARDS)
    settings["evaluation"]["memorization"] = {"every": 2}
    (message,) = in_ranks([{"settings": settings, "out": str(tmp_path / "two")}], tmp_path)
    assert "memorization" in message


@pytest.mark.parametrize("parallel", [{}, SHARDS])
def test_a_killed_rank_ends_the_other_with_one_message(
    parallel: dict[str, Any], tiny: Settings, tmp_path: Path
) -> None:
    settings = tiny(**{**BASE, "steps": 2000}, parallel=parallel)
    code = f"""
import os, signal, sys
sys.argv[1:] = [{str(tmp_path / "runs.json")!r}]
sys.path.insert(0, {str(SCRIPT.parent)!r})
import rank_training
from gemmule.train import loop
plain, steps = loop.clip_gradients, 0
def clip(*args):
    global steps
    steps += 1
    if steps == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args)
rank_training.plain = clip
import json
rank_training.main(json.load(open(sys.argv[1])))
"""
    runs = [{"settings": settings, "out": str(tmp_path / "run")}]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    first, second = run_ranks(["-c", code], seconds=60)
    assert second.code == -9
    assert first.code != 0
    assert "rank 1 of 2 is gone: it was killed" in first.out + first.err
