"""The size factor: interpolated, never extrapolated, from seeds with all models."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from gemmule.ablate import shapes
from gemmule.ablate.config import SweepConfig
from gemmule.ablate.equal_compute import at_compute_of_needed
from gemmule.ablate.factor_plot import draw_factors
from gemmule.ablate.run_sweep import run_ablation
from gemmule.ablate.size_factor import Factor, factor, over_seeds, size_factors
from gemmule.ablate.sweep import Cell, Ladder, make_plan
from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.report import write_card
from gemmule.train.config import RunConfig

Sweep = Callable[..., SweepConfig]
COMMITTED = Path(__file__).parents[2] / "bench/results/ablate-size.json"
CURVE = [(100.0, 5.0), (400.0, 4.0), (1600.0, 3.5)]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (4.5, Factor(2.0)),  # half way from 100 to 400 on a logarithmic scale
        (4.0, Factor(4.0)),
        (3.75, Factor(8.0)),
        (3.5, Factor(16.0)),
        (3.4, Factor(16.0, "more than")),
        (5.0, Factor(1.0, "at most")),
        (6.0, Factor(1.0, "at most")),
    ],
)
def test_a_factor(loss: float, expected: Factor) -> None:
    result = factor(100.0, loss, CURVE)
    assert result.value == pytest.approx(expected.value)
    assert result.bound == expected.bound


def test_a_larger_model_counts_as_no_worse() -> None:
    bumpy = [(100.0, 5.0), (400.0, 4.0), (1600.0, 4.2), (6400.0, 3.0)]
    assert factor(100.0, 4.1, bumpy) == factor(100.0, 4.1, bumpy[:2])
    between = factor(100.0, 3.5, bumpy)
    assert between.value == pytest.approx(math.sqrt(16 * 64))  # from 4.0 at 1,600 to 3.0 at 6,400
    rising = [(100.0, 4.0), (400.0, 4.5)]
    assert factor(100.0, 3.9, rising) == Factor(4.0, "more than")
    assert factor(100.0, 4.1, rising[::-1]) == Factor(1.0, "at most")


def test_over_seeds() -> None:
    two = over_seeds([Factor(2.0), Factor(8.0)])
    assert two["value"] == pytest.approx(4.0)
    # The logarithms' standard error is ln 2, and Student's t with one degree of freedom 12.706.
    assert two["high"] == pytest.approx(4 * 2**12.706, rel=1e-3)
    assert two["low"] * two["high"] == pytest.approx(16)
    one = over_seeds([Factor(3.0)])
    assert (one["value"], one["low"], one["bound"]) == (pytest.approx(3.0), None, None)
    more = over_seeds([Factor(9.0, "more than"), Factor(5.0)])
    assert (more["value"], more["bound"], more["bounded"]) == (5.0, "more than", 1)
    most = over_seeds([Factor(1.0, "at most"), Factor(1.5)])
    assert (most["value"], most["bound"]) == (1.5, "at most")
    both = over_seeds([Factor(1.0, "at most"), Factor(9.0, "more than")])
    assert (both["value"], both["bound"]) == (None, "undetermined")
    assert over_seeds([])["n"] == 0


def shown(losses: dict[str, Sequence[float]], student: Sequence[float]) -> list[Any]:
    sizes = {"s": 100, "m": 400, "l": 1600}
    cells = [("s", "distilled", student), *((g, "from scratch", v) for g, v in losses.items())]
    return [
        (
            Cell(f"{group}-{arm}-{seed}", group, arm, seed, {}),
            {
                "status": "done",
                "figures": {
                    "nats_per_token": loss,
                    "non_embedding_parameters": sizes[group],
                    "parameters": sizes[group] + 400,
                },
            },
        )
        for group, arm, values in cells
        for seed, loss in enumerate(values)
    ]


def entry(losses: dict[str, Sequence[float]], student: Sequence[float]) -> dict[str, Any]:
    ladder = Ladder(("s", "distilled"), "equal tokens", tuple((g, "from scratch") for g in losses))
    return size_factors([ladder], shown(losses, student))[0]


@pytest.mark.parametrize(
    ("losses", "student", "words"),
    [
        (
            {"s": [5.0, 5.1], "m": [4.0, 4.1], "l": [3.5, 3.6]}, [4.5, 4.6],
            "s distilled, equal tokens: size factor 2.0 (2.0 to 2.0), 2 seeds; counting the "
            "embedding, 1.3 (1.3 to 1.3)",
        ),
        (
            {"s": [5.0, 5.1], "m": [4.0, 4.1], "l": [3.5, 3.6]}, [3.4, 3.3],
            "s distilled, equal tokens: size factor more than 16.0 (no model from scratch reaches "
            "it; the closest is l at +0.200 nats/token; counting the embedding, more than 4.0)",
        ),
        (
            {"s": [5.0, 5.1], "m": [4.0, 4.1]}, [4.5, 3.0],
            "s distilled, equal tokens: size factor more than 2.0 (no model from scratch reaches "
            "it in 1 of 2 seeds; the closest is m at +0.300 nats/token; counting the embedding, "
            "more than 1.3)",
        ),
        (
            {"s": [4.0, 4.1], "m": [3.8, 3.9]}, [4.2, 4.3],
            "s distilled, equal tokens: size factor at most 1.0 (the smallest model from scratch "
            "tried reaches it; counting the embedding, at most 1.0)",
        ),
        (
            {"s": [4.0, 5.0], "m": [3.8, 4.8]}, [4.2, 4.2],
            "s distilled, equal tokens: undetermined, 2 seeds lie on both sides of the models from "
            "scratch",
        ),
        ({"s": [4.0], "m": []}, [4.2], "s distilled, equal tokens: no seed has all the models"),
        (
            {"s": [5.0, 5.0], "m": [4.0, 4.0]}, [4.05, 4.5],
            "past the largest model from scratch, 4.0",
        ),
    ],
)  # fmt: skip
def test_verdicts(losses: dict[str, list[float]], student: list[float], words: str) -> None:
    assert entry(losses, student)["verdict"].endswith(words)


def test_the_committed_sweep_has_the_factors_of_its_cells() -> None:
    """At equal tokens: sizes above 1m and runs at equal compute came later."""
    saved = json.loads(COMMITTED.read_text(encoding="utf-8"))
    sizes = ("0.1m", "0.25m", "0.5m", "1m")
    rungs = tuple((size, "from scratch") for size in sizes)
    ladders = [Ladder((size, "distilled"), "equal tokens", rungs) for size in sizes]
    cells = [(Cell(c["name"], c["group"], c["arm"], c["seed"], {}), c) for c in saved["cells"]]
    factors = size_factors(ladders, cells[1:])  # the first is the recording
    assert saved["size_factors"] == factors
    assert factors[0]["factor"]["bound"] == "more than"
    assert factors[0]["factor"]["value"] == pytest.approx(9.4, abs=0.05)


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_factors({"size_factors": []}) is None
    assert draw_factors({"size_factors": [entry({"s": [4.0], "m": []}, [4.2])]}) is None


def test_compute_of_a_student_with_its_share_of_the_recording(sweep: Sweep) -> None:
    plan = make_plan(sweep("size"), Path("out"), 512)
    flops = {"train_flops": 3e9, "teacher_flops": 8e9}
    records = [{"name": c.name, "result_file": "r.json", "figures": flops} for c in plan.cells]
    cell = next(c for c in plan.cells if c.equal_compute)
    settings = RunConfig.parse(cell.settings, cell.name)
    config = at_compute_of_needed(cell, settings, plan.cells, records)
    shape = GemmaConfig.parse(cell.settings["model"], cell.name)
    assert shape == GemmaConfig.parse(plan.cells[1].settings["model"], "from scratch")
    per_token = 3 * shape.forward_flops_per_token(16)
    assert config.steps == round((3e9 + 8e9 / 8) / (per_token * 32))  # eight students share it
    assert config.data.corpus_tokens == 32 * config.steps > 180
    del flops["teacher_flops"]
    with pytest.raises(ConfigError, match=r"r\.json is of an earlier version.*delete that file"):
        at_compute_of_needed(cell, settings, plan.cells, records)


def test_a_sweep_reports_factors_and_gives_its_students_cards(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "STUDENTS", ("0.1m", "0.25m"))
    out = tmp_path / "sweep"
    results = run_ablation(sweep("size", seeds=1, largest="1m", online=True), out)
    assert (results["failed"], results["pending"]) == (0, 0)
    entries = results["size_factors"]
    assert [(e["group"], e["basis"]) for e in entries[:2]] == [
        ("0.1m", "equal tokens"), ("0.1m", "equal training compute"),
    ]  # fmt: skip
    cells = {c["name"]: c["figures"] for c in results["cells"]}
    student = cells["0.1m-distilled-seed0"]
    for rung in ("0.1m", "0.25m", "0.5m"):
        own = cells[f"{rung}-from-scratch-compute-of-0.1m-distilled-seed0"]
        steps = own["train_tokens"] / 32
        assert own["train_flops"] == pytest.approx(
            student["train_flops"], abs=max(0.5, 0.5 / steps) * own["train_flops"] / steps
        )
    page = (out / "README.md").read_text()
    assert "## Size factor" in page
    assert all(e["verdict"] in page for e in entries)
    picture = (out / "size-factor.svg").read_text()
    for words in ("at equal tokens", "at equal training compute", "0.1m distilled"):
        assert words in picture
    run = out / "cells" / "0.1m-distilled-seed0"
    card = (write_card(run) / "README.md").read_text()
    assert "## Size factor" in card
    assert "| 0.1m distilled, at equal training compute |" in card
    kept = json.loads((run / "evals" / "size_factor.json").read_text())["size_factors"]
    assert kept == entries[:2]
    # A larger ladder adds its model to a finished sweep.
    more = run_ablation(sweep("size", seeds=1, largest="3m", online=True), out)
    assert len(more["cells"]) == len(cells) + 1
    assert {c["name"]: c["figures"] for c in more["cells"]}.items() >= cells.items()
