"""One process against several on this machine: the sum by hand, and an exchange that is timed."""

from typing import Any

import pytest

from gemmule.errors import ConfigError
from gemmule.plan import exchange_worker, processes
from gemmule.plan.processes import ExchangeError, exchange_seconds, predict
from gemmule.train.config import RunConfig
from models import GROUPED, tiny_config

MODEL = tiny_config(GROUPED, vocab_size=259)


def run(**settings: Any) -> RunConfig:
    data = {"path": "none", "batch_size": 8, "seq_len": 32, "micro_batch_size": 2}
    return RunConfig.parse({"steps": 1, "data": data, "model": {"preset": "1m"}, **settings})


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Made-up exchanges of a quarter of a second, on four cores; whether each was of shards."""
    asked: list[bool] = []

    def exchange(model: Any, count: int, sharded: bool) -> float:
        asked.append(sharded)
        return 0.25

    monkeypatch.setattr(processes, "exchange_seconds", exchange)
    monkeypatch.setattr("gemmule.runtime.host.usable_cores", lambda: 4)
    return asked


def test_processes_share_the_cores_and_add_an_exchange(exchanges: list[bool]) -> None:
    together = predict(MODEL, run(), alone=2.0, threads=4, count=2).to_json()
    assert together["compute_seconds"] == 2.0  # the same four cores
    assert together["together_seconds"] == 2.25
    assert together["verdict"] == "a step of 2 processes takes 1.12 times as long as that of one"
    # A process that was held to one thread leaves cores for others.
    held = run(runtime={"threads": 1})
    together = predict(MODEL, held, alone=2.0, threads=1, count=2).to_json()
    assert together["compute_seconds"] == 1.0
    assert together["verdict"] == "a step of 2 processes is 1.60 times as fast as that of one"
    assert exchanges == [False, False]


def test_shards_are_exchanged_in_each_pass(exchanges: list[bool]) -> None:
    sharded = run(parallel={"data_parallel_shard_degree": -1})
    together = predict(MODEL, sharded, alone=2.0, threads=4, count=2)
    assert together.communication == 2 * 0.25  # four sequences each, two at a time
    assert exchanges == [True]
    with pytest.raises(ConfigError, match="3 ranks cannot share a batch equally"):
        predict(MODEL, sharded, alone=2.0, threads=4, count=3)


def test_tensor_parallel_processes_share_a_batch_as_one(exchanges: list[bool]) -> None:
    degrees = {"tensor_parallel_degree": 4, "data_parallel_shard_degree": -1}
    together = predict(MODEL, run(parallel=degrees), alone=2.0, threads=4, count=4)
    assert together.communication == 4 * 0.25  # all eight sequences, two at a time
    with pytest.raises(ConfigError, match="6 ranks cannot be divided into groups of 4"):
        predict(MODEL, run(parallel=degrees), alone=2.0, threads=4, count=6)


def test_what_is_exchanged_is_the_whole_model() -> None:
    for sharded in (False, True):
        sizes = exchange_worker.sizes(MODEL, sharded)
        assert sum(elements * times for elements, times in sizes) == MODEL.parameters
    assert len(exchange_worker.sizes(MODEL, sharded=True)) == 2


@pytest.mark.slow
def test_an_exchange_is_timed_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < exchange_seconds(MODEL, 2, sharded=True) < 10
    monkeypatch.setattr(processes, "_SECONDS", 0.01)
    with pytest.raises(ExchangeError, match="2 processes did not exchange a model within 0 s"):
        exchange_seconds(MODEL, 2, sharded=True)
