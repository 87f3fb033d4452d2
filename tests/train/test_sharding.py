"""Sharded models: the gradients and steps of several ranks are those of a process alone."""

import json
from pathlib import Path

import pytest

from gemmule.errors import ConfigError
from gemmule.runtime.world import World
from gemmule.train.sharding import data_mesh
from ranks import run_ranks

SCRIPT = Path(__file__).parent / "rank_sharding.py"


@pytest.mark.parametrize(
    ("ranks", "degree"),
    [
        pytest.param(2, -1),
        pytest.param(2, 1, marks=pytest.mark.slow),
        pytest.param(3, -1, marks=pytest.mark.slow),
        pytest.param(4, -1, marks=pytest.mark.slow),
        pytest.param(4, 2, marks=pytest.mark.slow),
    ],
)
def test_ranks_step_as_one_process(ranks: int, degree: int) -> None:
    ended = run_ranks([str(SCRIPT), str(degree)], ranks)
    assert [rank.code for rank in ended] == [0] * ranks, [rank.err for rank in ended]
    for rank in ended:
        result = json.loads(rank.out)
        group = ranks if degree == -1 else degree
        assert result["held"] == pytest.approx(1 / group, rel=0.05)
        assert result["same_logits"]
        # Two addends commute: the same bits. Of more, the order of additions differs.
        assert result["gradients"] <= (0 if ranks == 2 else 1e-6)
        assert result["norm"] == pytest.approx(1, rel=1e-6)
        assert result["weights"] < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "degree"), [(2, -1), (4, -1), (4, 1)])
def test_tensor_parallel_ranks_step_as_one_process(ranks: int, degree: int) -> None:
    """Two of them; with four ranks there are two shards, or two copies, of each one's part."""
    ended = run_ranks([str(SCRIPT), str(degree), "2"], ranks)
    assert [rank.code for rank in ended] == [0] * ranks, [rank.err for rank in ended]
    for rank in ended:
        result = json.loads(rank.out)
        assert result["held"] == pytest.approx(1 / (2 if degree == 1 else ranks), rel=0.05)
        assert result["logits"] < 1e-5  # of up to 30
        assert result["gradients"] < 5e-6
        assert result["norm"] == pytest.approx(1, rel=1e-6)
        assert result["weights"] < 1e-5


def test_groups_that_do_not_use_every_rank() -> None:
    world = World()
    world.size = 6
    with pytest.raises(ConfigError, match=r"shard_degree = 4: 6 ranks cannot be divided into gro"):
        data_mesh(world, 4, "cpu")
