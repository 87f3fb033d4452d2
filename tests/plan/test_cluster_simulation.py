"""The planner's formulas against the real shard(), in a process of its own: the group is global."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemmule.model.config import preset
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.cluster.simulation import planned

ROOT = Path(__file__).parents[2]

SIMULATED = """
import dataclasses, json
from gemmule.model.config import preset
from gemmule.plan.cluster.layout import Layout
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.cluster.simulation import fake_ranks, one_step, planned, simulate
from gemmule.train.sharding import data_mesh
from models import GROUPED, tiny_config

tiny = tiny_config(GROUPED, vocab_size=259)
results = {}
for name, config, ranks, shards, half in (
    ("fsdp", preset("27b"), 64, 64, True),
    ("hsdp", tiny, 8, 4, True),
    ("fp32", tiny, 3, 3, False),
    ("more ranks than rows", tiny, 48, 48, True),
):
    dtype = "bfloat16" if half else "float32"
    layout = Layout(shards=shards, replicas=ranks // shards, dtype=dtype)
    with fake_ranks(ranks) as world:
        mesh = data_mesh(world, shards, "cpu")
        simulated = simulate(config, mesh, half=half)
        if name == "hsdp":
            deep = one_step(config, mesh, half)
            results["deep"] = [dataclasses.asdict(simulated), dataclasses.asdict(deep)]
    formula = planned(Shape.of_gemma(name, config), layout)
    results[name] = [dataclasses.asdict(simulated), dataclasses.asdict(formula)]
print(json.dumps(results))
"""


@functools.cache
def results() -> dict[str, list[dict[str, Any]]]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIMULATED], capture_output=True, text=True,
        timeout=300, check=False, cwd=ROOT / "tests",
    )  # fmt: skip
    if "no fake process group" in done.stderr:
        pytest.skip("this torch has no fake process group")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["fsdp", "hsdp", "fp32", "more ranks than rows"])
def test_the_formulas_are_what_the_real_step_does(name: str) -> None:
    simulated, formula = results()[name]
    assert simulated == formula


def test_a_deep_model_is_what_two_shallow_ones_say() -> None:
    simulated, deep = results()["deep"]
    assert simulated == deep
    assert simulated["reductions"] == 5  # a unit per layer, and the root


def test_two_layers_gather_five_times_and_scatter_three_times() -> None:
    large, _ = results()["fsdp"]
    assert (large["gathers"], large["scatters"]) == (2 * 46 + 1, 46 + 1)
    # Blocks twice in two bytes, the root once in four; a few rows are padded.
    assert large["gathered"] == pytest.approx(4 * 27.23e9, rel=1e-3)
    assert large["states"] == 2 * large["parameters"] == 2 * large["gradients"]


def test_the_page_has_what_the_formulas_say_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import simulate

    rows = json.loads((ROOT / "bench/results/simulate.json").read_text())["rows"]
    grids = [(r["model"], r["ranks"], r["shards"]) for r in rows]
    assert grids == [(name, *grid) for name in simulate.MODELS for grid in simulate.GRIDS]
    for row in rows:
        shape = Shape.of_gemma(row["model"], preset(row["model"]))
        formula = planned(shape, simulate.layout_of(row["ranks"], row["shards"]))
        assert row["simulated"] == row["formula"] == dataclasses.asdict(formula)
    page = (ROOT / "docs/scaling.md").read_text()
    for lines in (
        simulate.counts_table(rows), simulate.planned_table(), simulate.published_table(),
    ):  # fmt: skip
        assert "\n".join(lines) in page, "python bench/simulate.py --json … --write"
