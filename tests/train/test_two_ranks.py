"""Runs of two ranks end as those of one process, however they were stopped and resumed."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.metrics import read_metrics
from gemmule.train.config import RunConfig
from gemmule.train.run import run_training
from models import TINY, random_model, tiny_config
from ranks import run_ranks

SCRIPT = Path(__file__).parent / "rank_training.py"
SHARDS = {"data_parallel_shard_degree": -1}
TENSOR = {"tensor_parallel_degree": 2}

Settings = Callable[..., dict[str, Any]]
Runs = list[dict[str, Any]]


def in_ranks(runs: Runs, folder: Path, size: int = 2) -> list[Any]:
    """What became of each run, on the first rank; the others must say the same."""
    (folder / "runs.json").write_text(json.dumps(runs))
    ended = run_ranks([str(SCRIPT), str(folder / "runs.json")], size)
    assert [rank.code for rank in ended] == [0] * size, [rank.err for rank in ended]
    results = [json.loads(rank.out) for rank in ended]
    for i, first in enumerate(results[0]):
        timeless = [{**r[i], "seconds": 0} if isinstance(r[i], dict) else r[i] for r in results]
        if isinstance(first, dict):
            assert all(t == timeless[0] for t in timeless)
    return list(results[0])


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


def apart(run: Path, other: Path) -> float:
    a, b = weights(run), weights(other)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def losses(run: Path) -> list[float]:
    return [m["loss"] for m in read_metrics(run) if "loss" in m]


@pytest.fixture(scope="module", autouse=True)
def _no_meter() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemmule.runs.carbon.start_tracker", lambda *_: 1 / 0)
        yield


@pytest.fixture(scope="module")
def runs(tiny: Settings, pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs by two ranks, and of some of them alone; results are in results.json."""
    folder = tmp_path_factory.mktemp("two")
    teacher = folder / "teacher"
    shape = tiny_config(vocab_size=pieces.vocab_size, num_key_value_heads=2)
    save_model(random_model(shape, 5), pieces, teacher)
    base: dict[str, Any] = {"steps": 6, "runtime": {"device": "cpu"}}
    taught = {**base, "steps": 3, "objective": {"teacher": str(teacher)}}
    planned = {
        "plain": tiny(**base),
        "shards": tiny(**base, parallel=SHARDS),
        "taught": tiny(**taught),
        "taught shards": tiny(**taught, parallel=SHARDS),
        "tensor": tiny(**taught, model={**TINY, "num_key_value_heads": 2}, parallel=TENSOR),
        "one head": tiny(**taught, parallel=TENSOR),
        "odd": tiny(**base, data={"batch_size": 5, "micro_batch_size": 1}),
    }
    listed = [{"settings": s, "out": str(folder / name)} for name, s in planned.items()]
    stopped = str(folder / "tensor stopped")
    listed.append({"settings": planned["tensor"], "out": stopped, "stop_at": 1})
    listed.append({"settings": planned["tensor"], "out": stopped, "resume": True})
    for name in ("plain", "shards"):
        stopped = str(folder / f"{name} stopped")
        listed.append({"settings": planned[name], "out": stopped, "stop_at": 3})
        listed.append({"settings": planned[name], "out": stopped, "resume": True})
        handed = str(folder / f"{name} handed on")
        listed.append({"settings": planned[name], "out": handed, "stop_at": 2})
    results = in_ranks(listed, folder)
    (folder / "results.json").write_text(json.dumps(results))
    for name in ("plain", "taught", "tensor"):
        run_training(RunConfig.parse(planned[name]), folder / f"{name} alone")
    for name in ("plain", "shards"):
        out = folder / f"{name} handed on"
        run_training(RunConfig.parse(planned[name]), out, resume=True)
    return folder


def test_two_ranks_end_with_the_bits_of_one_process(runs: Path) -> None:
    assert apart(runs / "plain", runs / "plain alone") == 0
    assert losses(runs / "plain") == losses(runs / "plain alone")
    lines, alone = read_metrics(runs / "plain"), read_metrics(runs / "plain alone")
    keys = ("step", "split", "tokens")
    assert [[m.get(k) for k in keys] for m in lines] == [[m.get(k) for k in keys] for m in alone]
    valued = [(m["bits_per_byte"], n["bits_per_byte"]) for m, n in zip(lines, alone, strict=True)
              if "split" in m]  # fmt: skip
    assert valued
    assert all(a == pytest.approx(b, rel=1e-6) for a, b in valued)


@pytest.mark.parametrize(
    ("run", "alone"),
    [
        ("shards", "plain alone"),
        ("taught", "taught alone"),
        ("taught shards", "taught alone"),
        ("tensor", "tensor alone"),
    ],
)
def test_shards_tensor_parallel_and_a_teacher_change_nothing(
    run: str, alone: str, runs: Path
) -> None:
    assert losses(runs / run) == pytest.approx(losses(runs / alone), rel=1e-5)
    assert apart(runs / run, runs / alone) < 1e-4


@pytest.mark.parametrize("name", ["plain", "shards"])
def test_a_stopped_run_is_resumed_by_as_many_ranks_or_by_one(name: str, runs: Path) -> None:
    results = _results(runs)
    # The flag of a rank that is asked in the middle of a step comes with the next one.
    messages = [r for r in results if isinstance(r, str) and r.startswith("Interrupted")]
    after = [m.split(" of ")[0].removeprefix("Interrupted: stopped after ") for m in messages]
    assert after == ["step 2", *["step 4", "step 3"] * 2]
    # As many ranks: no bit differs.
    assert apart(runs / f"{name} stopped", runs / name) == 0
    assert losses(runs / f"{name} stopped") == losses(runs / name)
    # One process, from the states of two.
    assert losses(runs / f"{name} handed on") == pytest.approx(losses(runs / name), rel=1e-5)
    assert apart(runs / f"{name} handed on", runs / name) < 1e-4


def test_tensor_parallel_ranks_stop_together_and_go_on(runs: Path) -> None:
    """Neither reads a batch of its own: the second, which is asked to stop, counts all the same."""
    assert apart(runs / "tensor stopped", runs / "tensor") == 0
    assert losses(runs / "tensor stopped") == losses(runs / "tensor")


def test_a_batch_or_a_model_that_cannot_be_shared_is_an_error(runs: Path) -> None:
    heads, message = [r for r in _results(runs) if str(r).startswith("ConfigError")]
    assert "data.batch_size = 5: 2 ranks cannot share a batch equally; set it to a mul" in message
    assert "tensor parallel over 2 ranks: the model has 1 key-value heads" in heads
    assert not any((runs / name).exists() for name in ("odd", "one head"))


def _results(runs: Path) -> Sequence[Any]:
    results: list[Any] = json.loads((runs / "results.json").read_text())
    return results
