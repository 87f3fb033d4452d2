"""Every ablation, planned and run for a few steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gemmule.ablate.ablations import CATALOGUE
from gemmule.ablate.config import SweepConfig
from gemmule.ablate.run_metrics import with_window
from gemmule.ablate.run_sweep import run_ablation
from gemmule.ablate.sweep import ROUTED, TARGETS, make_plan
from gemmule.checkpoints.load import load_model
from gemmule.errors import ConfigError

Sweep = Callable[..., SweepConfig]
SMALL = {"student": "0.1m", "seeds": 1}


def run(sweep: Sweep, out: Path, name: str, **changes: Any) -> dict[str, Any]:
    results = run_ablation(sweep(name, **{**SMALL, **changes}), out)
    assert (results["failed"], results["pending"]) == (0, 0)
    assert (out / "plot.svg").is_file()
    return results


def manifests(out: Path, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        c["name"]: json.loads((out / "cells" / c["name"] / "manifest.json").read_text())
        for c in results["cells"]
    }


@pytest.mark.parametrize("name", CATALOGUE)
def test_cells_are_named_once_and_come_after_what_they_need(name: str, sweep: Sweep) -> None:
    changes = {} if name == "size" else {"student": "1m"}
    plan = make_plan(sweep(name, seeds=3, **changes), Path("out"), 512)
    names = [cell.name for cell in plan.cells]
    assert len(set(names)) == len(names)
    keys = {(cell.group, cell.arm) for cell in plan.cells if cell.shown}
    for key in keys:
        seeds = [c.seed for c in plan.cells if (c.group, c.arm) == key]
        assert seeds == [0, 1, 2], key
    for pair in plan.comparisons:
        assert set(pair) <= keys
    for i, cell in enumerate(plan.cells):
        assert cell.needs is None or cell.needs in names[:i]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("size", {"model": {"hidden_size": 32}}, "size varies model.hidden_size"),
        ("depth", {"model": {"num_hidden_layers": 3}}, "depth varies model.num_hidden_layers"),
        ("window", {"model": {"sliding_window": 8}}, "window varies model.sliding_window"),
        ("window", {"data": {"seq_len": 12}}, "leaves no window to shrink"),
        ("heads", {"data": {"seq_len": 2048}}, "seq_len = 2048 is longer than the context of 1024"),
        ("routing", {"objective": {"route_above": 1.0}}, "routing varies route_above"),
        ("targets", {"objective": {"loss": "jsd"}}, "with loss = jsd"),
        ("size", {"objective": {"loss": "jsd"}}, "add --online"),
        ("size", {"objective": {"route_above": 1.0}}, "with route_above"),
    ],
)
def test_settings_that_do_not_suit(
    name: str, settings: dict[str, Any], message: str, sweep: Sweep
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(sweep(name, settings=settings), Path("out"), 512)


def test_heads(sweep: Sweep, tmp_path: Path) -> None:
    results = run(sweep, tmp_path / "out", "heads")
    runs = manifests(tmp_path / "out", results)
    mha, gqa, filled = (runs[f"{arm}-seed0"] for arm in ("MHA", "GQA", "GQA-equal-parameters"))
    assert mha["model"]["num_key_value_heads"] == 2 * gqa["model"]["num_key_value_heads"]
    counts = [m["non_embedding_parameters"] for m in (mha, gqa, filled)]
    assert counts[1] < counts[0]
    assert counts[2] == pytest.approx(counts[0], rel=0.02)


def test_depth(sweep: Sweep, tmp_path: Path) -> None:
    results = run(sweep, tmp_path / "out", "depth")
    runs = manifests(tmp_path / "out", results)
    wide, deep = runs["wide-seed0"], runs["deep-seed0"]
    assert deep["model"]["num_hidden_layers"] > wide["model"]["num_hidden_layers"]
    counts = [m["non_embedding_parameters"] for m in (wide, deep)]
    assert counts[0] == pytest.approx(counts[1], rel=0.02)
    assert [d["baseline"][1] for d in results["differences"]] == ["wide"]


def test_window(sweep: Sweep, tmp_path: Path) -> None:
    results = run(sweep, tmp_path / "out", "window")
    assert [row["arm"] for row in results["summary"]] == ["window 4", "window 2", "window 1"]
    cells = {c["name"]: c["figures"] for c in results["cells"]}
    trained = cells.pop("trained-seed0")
    same = cells["window-4-seed0"]["nats_per_token"]
    assert same == pytest.approx(trained["nats_per_token"], rel=1e-6)
    assert len({figures["nats_per_token"] for figures in cells.values()}) == 3


def test_a_smaller_window_hides_what_lies_outside(teacher: Path) -> None:
    """A token just outside the window does not reach a model of one local layer."""
    model, _ = load_model(teacher, torch.float32)
    one = model.config.model_copy(update={"num_hidden_layers": 1})
    small = with_window(type(model)(one), 3)
    tokens = torch.randint(4, 500, (1, 12), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 5] = 3
    reached = (small(tokens) - small(other)).abs().amax(-1)[0] > 0
    assert reached.nonzero().flatten().tolist() == [5, 6, 7]


def test_loss(sweep: Sweep, tmp_path: Path) -> None:
    results = run(sweep, tmp_path / "out", "loss")
    objectives = {m: v["objective"] for m, v in manifests(tmp_path / "out", results).items()}
    assert {o["loss"] for o in objectives.values()} == {
        "cross_entropy", "forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl",
    }  # fmt: skip
    assert objectives["temperature-2-seed0"]["temperature"] == 2.0
    assert objectives["alpha-0.5-seed0"]["alpha"] == 0.5
    with pytest.raises(ConfigError, match="loss varies alpha: do not set it"):
        run(
            sweep,
            tmp_path / "other",
            "loss",
            settings={**sweep("loss").settings, "objective": {"alpha": 0.1}},
        )


def test_teacher_sizes(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = run(sweep, out, "teacher", teacher_size="0.25m", teacher_tokens=40)
    runs = manifests(out, results)
    parents = {n: m["parent"] and m["parent"]["parameters"] for n, m in runs.items()}
    assert parents["from-scratch-seed0"] is None
    for size in ("0.25m", "0.5m", "1m"):
        assert parents[f"{size}-teacher-seed0"] == runs[f"teacher-{size}"]["parameters"]
    with pytest.raises(ConfigError, match="leave --teacher out"):
        sweep("teacher", teacher="x")


def test_induction(sweep: Sweep, tmp_path: Path) -> None:
    results = run(sweep, tmp_path / "out", "induction")
    cells = {c["name"]: c["figures"] for c in results["cells"]}
    scratch, distilled = cells["from-scratch-seed0"], cells["distilled-seed0"]
    assert scratch["length"] == 8
    gain = distilled["induction"] - scratch["induction"]
    assert results["differences"][0]["mean"] == pytest.approx(gain)
    assert "induction score" in (tmp_path / "out" / "table.md").read_text()


def test_students_of_several_sizes_learn_from_one_record(sweep: Sweep) -> None:
    """And distilled or not, all read the part of the corpus that is recorded."""
    out = Path("out")
    record, *cells = make_plan(sweep("size"), out, 512).cells
    assert record.name == "record-sampled-50"
    assert record.settings["tokens"] == 180  # 2 seeds x 90 tokens
    for cell in cells:
        assert cell.settings["data"]["corpus_tokens"] == 180
        distilled = cell.arm == "distilled"
        assert cell.settings.get("objective", {}).get("targets") == (
            "out/cells/record-sampled-50/store" if distilled else None
        )
        if not cell.equal_compute:
            assert cell.needs == (record.name if distilled else None)
        assert "teacher" not in cell.settings.get("objective", {})
    online = make_plan(sweep("size", online=True), out, 512).cells
    assert len(online) == len(cells)
    assert all("corpus_tokens" not in cell.settings["data"] for cell in online)
    taught = [cell for cell in online if "teacher" in cell.settings.get("objective", {})]
    assert len(taught) == 2 * 4  # seeds x sizes


def test_sizes_go_on_above_the_students_and_share_their_compute(sweep: Sweep) -> None:
    plan = make_plan(sweep("size", seeds=1, largest="10m"), Path("out"), 512)
    scratch = [c.group for c in plan.cells if c.arm == "from scratch"]
    assert scratch == ["0.1m", "0.25m", "0.5m", "1m", "3m", "10m"]
    compute = {(c.group, str(c.needs)) for c in plan.cells if c.equal_compute}
    assert compute == {
        (group, f"{student}-distilled-seed0")
        for student, groups in (
            ("0.1m", ("0.1m", "0.25m", "0.5m")), ("0.25m", ("0.25m", "0.5m", "1m")),
            ("0.5m", ("0.5m", "1m", "3m")), ("1m", ("1m", "3m", "10m")),
        ) for group in groups
    }  # fmt: skip
    assert {ladder.basis for ladder in plan.ladders} == {"equal tokens", "equal training compute"}
    with pytest.raises(ConfigError, match="largest = '2m' is not a size; did you mean"):
        make_plan(sweep("size", largest="2m"), Path("out"), 512)
    with pytest.raises(ConfigError, match="heads has no ladder of sizes: leave --largest out"):
        sweep("heads", largest="10m")


def test_targets(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = run(sweep, out, "targets")
    rows = {row["arm"]: row for row in results["summary"]}
    assert rows.pop("whole distribution")["bytes_per_token"] is None
    assert set(rows) == set(TARGETS)
    for label, row in rows.items():
        made = json.loads(
            (out / "cells" / f"{label}-seed0".replace(" ", "-") / "manifest.json").read_text()
        )
        assert made["targets"]["label"] == label
        assert row["bytes_per_token"] == made["targets"]["bytes_per_token"]
    assert rows["sampled-12"]["bytes_per_token"] < rows["sampled-200"]["bytes_per_token"]
    assert "bytes/token" in (out / "table.md").read_text()
    assert "B/token" in (out / "plot.svg").read_text()


def test_routing(sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = run(sweep, out, "routing")
    probe = results["cells"][0]["figures"]
    above = [probe["quantiles"][str(q)] for q in ROUTED]
    assert above == sorted(above, reverse=True)
    runs = manifests(out, {"cells": results["cells"][1:]})
    routed = [m["objective"].get("route_above") for m in runs.values()]
    assert routed == [None, *above, None]
    losses = [c["figures"]["nats_per_token"] for c in results["cells"][1:]]
    assert len(set(losses)) == len(losses)
