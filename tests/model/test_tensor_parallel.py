"""A model over tensor-parallel ranks: the checks of tensor_parallel_worker.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import ConfigError
from gemmule.model.config import preset
from gemmule.model.tensor_parallel import check_degree
from models import tiny_config
from ranks import run_ranks

WORKER = Path(__file__).with_name("tensor_parallel_worker.py")


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_compute_what_one_process_does(ranks: int) -> None:
    ended = run_ranks([str(WORKER), str(ranks)], ranks)
    assert not any(rank.code for rank in ended), [rank.err for rank in ended]
    reports: list[dict[str, Any]] = [json.loads(rank.out) for rank in ended]
    for report in reports:
        assert report["held"] == pytest.approx(1 / ranks, rel=0.05)
        assert report["logits"] < 1e-6
        assert max(report["losses"] + report["beside"]) < 1e-6
        assert report["gradient"] < 1e-6
        assert {name: e for name, e in report["gradients"].items() if e > 3e-6} == {}
        assert report["values"] == reports[0]["values"]
        assert report["refused"].startswith(f"tensor parallel over {ranks} ranks: the model has 1")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("2b", {1, 2, 4}), ("9b", {1, 2, 4, 8}), ("27b", {1, 2, 4, 8, 16})],
)
def test_key_value_heads_bound_the_degree(name: str, allowed: set[int]) -> None:
    config = preset(name)
    for ranks in range(1, 33):
        if ranks in allowed:
            check_degree(config, ranks)
        else:
            with pytest.raises(ConfigError, match=rf"over {ranks} ranks: .* use 1 or 2 or 4"):
                check_degree(config, ranks)


def test_a_vocabulary_smaller_than_the_ranks() -> None:
    config = tiny_config(vocab_size=3, num_attention_heads=4, num_key_value_heads=4)
    with pytest.raises(ConfigError, match="a vocabulary of 3 rows cannot be split over 4 ranks"):
        check_degree(config, 4)
