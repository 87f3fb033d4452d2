"""Losses over a vocabulary that several processes hold: the checks of shard_worker.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import ConfigError
from gemmule.losses.divergences import KINDS
from gemmule.losses.formulas import CHAINED
from gemmule.losses.shard import shard_bounds
from ranks import run_ranks

WORKER = Path(__file__).with_name("shard_worker.py")
TOLERANCE = {
    "distillation": 1e-6,
    "sparse": 1e-6,
    "next_token": 1e-6,
    "whole_rows": 1e-6,
    "large_logits": 5e-6,  # as on one device
    "half_precision": 2e-2,
    "compiled": 5e-6,
}


def reports(ranks: int, *arguments: str) -> list[dict[str, Any]]:
    ended = run_ranks([str(WORKER), *arguments], ranks, seconds=300)
    assert not any(rank.code for rank in ended), [rank.err for rank in ended]
    return [json.loads(rank.out) for rank in ended]


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return reports(2, "24")


def wrong(report: dict[str, Any]) -> dict[str, Any]:
    """By check, the seeds whose errors exceed the tolerance."""
    return {
        check: failed
        for check, bound in TOLERANCE.items()
        if (failed := {s: e for s, e in enumerate(report[check]) if not max(e) <= bound})
    }


def test_two_ranks_compute_what_float64_does(two_ranks: list[dict[str, Any]]) -> None:
    for report in two_ranks:
        assert len(report["distillation"]) == 24
        assert wrong(report) == {}
    assert two_ranks[0]["bounds"] == [0, 130, 259]


def test_the_ranks_report_the_same_loss(two_ranks: list[dict[str, Any]]) -> None:
    """To the last bit: the errors of the values, which come before those of the gradients."""
    first, second = two_ranks
    for check in ("distillation", "sparse", "next_token"):
        assert [e[:2] for e in first[check]] == [e[:2] for e in second[check]]


def test_one_operation_per_chunk_and_one_for_the_hidden_states(
    two_ranks: list[dict[str, Any]],
) -> None:
    counts = two_ranks[0]["collectives"]
    chunk = counts.pop("shard")["elements"]
    assert set(counts) == {
        n + end for n in ("next token", "sparse", *KINDS) for end in ("", " without a cap")
    }
    for name, count in counts.items():
        kind = name.removesuffix(" without a cap")
        twice = kind in KINDS and kind not in CHAINED
        assert count == {"allgather_": 8 if twice else 4, "allreduce_": 1, "largest": chunk}, name


def test_wrong_shards_are_refused(two_ranks: list[dict[str, Any]]) -> None:
    few, rows, padding, other = two_ranks[1]["refusals"]
    assert few.startswith("a vocabulary of 1 rows cannot be split over 2 ranks")
    assert rows == "rank 1 of 2 has 10 rows of a head of 10; its shard has 5, from 5 on"
    assert padding.startswith("the head's last shard, from row 5 on, is padding only")
    assert other.startswith("this process has the ids from 5 to 9 of one head and from 0 to 9")


@pytest.mark.parametrize(
    ("vocab_size", "ranks", "bounds"),
    [
        (256_000, 3, [0, 85_334, 170_668, 256_000]),
        (259, 2, [0, 130, 259]),
        (5, 5, [0, 1, 2, 3, 4, 5]),
        (7, 1, [0, 7]),
    ],
)
def test_bounds_are_those_of_torch(vocab_size: int, ranks: int, bounds: list[int]) -> None:
    assert shard_bounds(vocab_size, ranks) == bounds


@pytest.mark.parametrize(("vocab_size", "ranks"), [(3, 4), (9, 4), (0, 1)])
def test_a_rank_without_rows_is_an_error(vocab_size: int, ranks: int) -> None:
    with pytest.raises(ConfigError, match=f"{vocab_size} rows cannot be split over {ranks} ranks"):
        shard_bounds(vocab_size, ranks)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_more_ranks_and_examples(ranks: int) -> None:
    for report in reports(ranks, "100"):
        assert wrong(report) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_kernels() -> None:
    for report in reports(2, "4", "compiled"):
        assert len(report["compiled"]) == 6
        assert wrong(report) == {}
