"""The ablation of mixtures: its grid, its runs, the losses by source and the choice."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmule.ablate.config import SweepConfig, default_weights, parsed_weights, shown_weights
from gemmule.ablate.page import summary_table
from gemmule.ablate.results import chosen
from gemmule.ablate.run_sweep import run_ablation
from gemmule.ablate.sweep import source_names
from gemmule.errors import ConfigError

Sweep = Callable[..., SweepConfig]


def test_the_default_grid_is_spread_over_the_simplex() -> None:
    assert list(map(shown_weights, default_weights(2))) == ["1:1", "2:1", "1:2", "1:0", "0:1"]
    grid = default_weights(4)
    assert len(set(grid)) == len(grid) == 9
    assert all(len(weights) == 4 for weights in grid)
    assert parsed_weights("3:0.5:0") == (3, 0.5, 0)


def test_a_sweep_measures_every_source_and_chooses_by_their_validation_loss(
    sweep: Sweep, another: Path, tmp_path: Path
) -> None:
    config = sweep("mixture", student="0.1m", seeds=1, weights=((1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    results = run_ablation(config, tmp_path / "out")
    assert (results["failed"], results["pending"]) == (0, 0)
    manifest = json.loads((tmp_path / "out/cells/1-0-seed0/manifest.json").read_text())
    read, unread = manifest["mixture"]["sources"]
    assert (unread["name"], unread["tokens"]) == (another.name, 0)
    assert read["tokens"] > 0
    rows = {row["arm"]: row for row in results["summary"]}
    for row in rows.values():
        losses = [estimate["mean"] for estimate in row["source_nats"].values()]
        assert row["mean_source_nats"]["mean"] == pytest.approx(sum(losses) / 2)
    # Each source is learned best by what reads it alone.
    own = {arm: row["source_nats"][another.name]["mean"] for arm, row in rows.items()}
    assert min(own, key=lambda arm: own[arm]) == "0:1"
    best = min(rows, key=lambda arm: rows[arm]["mean_source_nats"]["mean"])
    assert results["chosen"]["arm"] == best
    assert {tuple(d["baseline"]) for d in results["differences"]} == {("", "1:1")}
    page = (tmp_path / "out/README.md").read_text()
    assert f"chosen: {best}, mean validation loss of the sources" in page
    assert another.name in summary_table(results)[0]
    assert (tmp_path / "out/plot.svg").is_file()
    assert run_ablation(config, tmp_path / "out") == results


def test_nothing_is_chosen_before_all_runs_are_done() -> None:
    """Else means over different seeds would be compared."""
    rows = [
        {"arm": arm, "seeds": 2, "done": done, "mean_source_nats": {"mean": loss}}
        for arm, done, loss in (("1:1", 2, 5.0), ("2:1", 1, 4.0))
    ]
    assert chosen(rows) is None
    rows[1]["done"] = 2
    choice = chosen(rows)
    assert choice is not None
    assert choice["arm"] == "2:1"
    assert "next is 1:1, 1.0000 behind" in choice["verdict"]


def test_folders_of_one_name_are_called_by_their_paths() -> None:
    assert source_names([Path("a/web"), Path("b/code")]) == ["web", "code"]
    assert source_names([Path("a/data"), Path("b/data")]) == ["a/data", "b/data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "give --source twice"),
        ({"weights": ((1.0, 1.0, 1.0),)}, "--weights 1:1:1 has 3 weights for 2 sources"),
        ({"weights": ((0.0, 0.0),)}, "--weights 0:0: use 0 or more, and one weight above 0"),
        ({"weights": ((1.0, -1.0),)}, "--weights 1:-1: use 0 or more"),
        ({"weights": ((1.0, 2.0), (1.0, 2.0))}, "the same weights twice"),
        ({"teacher": "x"}, "mixture has no teacher"),
    ],
)
def test_settings_that_cannot_be(sweep: Sweep, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep("mixture", **changes)


def test_other_ablations_read_one_folder(sweep: Sweep) -> None:
    with pytest.raises(ConfigError, match="heads reads one folder: give --data, not --source"):
        sweep("heads", sources=("a", "b"))


def test_weights_that_are_no_numbers() -> None:
    with pytest.raises(ConfigError, match="as in 3:1"):
        parsed_weights("3/1")
