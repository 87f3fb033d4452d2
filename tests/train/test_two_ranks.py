"""The loop in two processes: the same steps as in one, stopped and resumed together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule.data.dataset import Dataset
from gemmule.runs.metrics import read_metrics
from gemmule.runs.run_dir import RunDir
from gemmule.train.config import RunConfig
from gemmule.train.loop import train
from gemmule.train.recipes import build_recipe
from ranks import run_ranks

SCRIPT = Path(__file__).parent / "rank_training.py"


@pytest.mark.usefixtures("no_meter")
def test_two_ranks_train_as_one(tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    settings = tiny(steps=5, data={"micro_batch_size": 4}, runtime={"device": "cpu"})
    folder = tmp_path / "ranks"
    folder.mkdir()
    ended = run_ranks([str(SCRIPT), json.dumps(settings), str(folder)])
    assert [rank.code for rank in ended] == [0, 0], [rank.err for rank in ended]
    first, second = (json.loads(rank.out) for rank in ended)
    # Both ranks hold the same weights, and those of a run that was stopped are no others.
    assert len({*first["checksums"], *second["checksums"]}) == 1
    # The second rank alone was asked to stop; both did, after the same step.
    assert "stopped after step 3 of 5" in first["message"]
    assert "stopped after step 3 of 5" in second["message"]
    config = RunConfig.parse(settings)
    recipe = build_recipe(config, Dataset.open(config.data.path))
    (tmp_path / "alone").mkdir()
    train(RunDir(tmp_path / "alone"), config, recipe, "alone", recipe.probes)
    alone = read_metrics(tmp_path / "alone")
    assert first["losses"] == pytest.approx([m["loss"] for m in alone if "loss" in m], rel=1e-4)
    assert first["norm"] == pytest.approx(recipe.model.norm.weight.tolist(), rel=1e-3, abs=1e-5)
    for name in ("whole", "stopped"):  # one rank writes, and what it writes is of both
        lines = read_metrics(folder / name)
        assert [m["tokens"] for m in lines] == [m["tokens"] for m in alone]
        keys = ("step", "split")
        assert [[m.get(k) for k in keys] for m in lines] == [
            [m.get(k) for k in keys] for m in alone
        ]
