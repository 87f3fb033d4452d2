"""Sweeps of a few steps: finished, stopped, failed, gone on with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule.ablate import run_sweep as module
from gemmule.ablate.config import SweepConfig, given_settings
from gemmule.ablate.run_sweep import run_ablation
from gemmule.errors import (
    ConfigError,
    Interrupted,
    OutputError,
    TokenizerError,
    TrainingError,
)
from gemmule.stats import student_mean
from gemmule.train.run import run_training

Sweep = Callable[..., SweepConfig]
Trained = list[str]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Names of the cells that were trained, in order."""
    names: Trained = []

    def noted(config: Any, out: Path, **more: Any) -> dict[str, Any]:
        names.append(out.name)
        return run_training(config, out, **more)

    monkeypatch.setattr(module, "run_training", noted)
    return names


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, at: str) -> None:
    def train(config: Any, out: Path, **more: Any) -> dict[str, Any]:
        if out.name == at:
            raise error
        return run_training(config, out, **more)

    monkeypatch.setattr(module, "run_training", train)


def statuses(results: dict[str, Any]) -> dict[str, str]:
    return {cell["name"]: cell["status"] for cell in results["cells"]}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Filled by the first test that needs a finished sweep of sizes."""
    return {"out": tmp_path_factory.mktemp("sweep") / "size"}


@pytest.fixture
def size(sweep: Sweep, finished: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    if "results" not in finished:
        finished["results"] = run_ablation(sweep("size", largest="1m"), finished["out"])
    return finished["out"], finished["results"]


def test_every_figure_is_that_of_its_run(size: tuple[Path, dict[str, Any]]) -> None:
    out, results = size
    assert json.loads((out / "results.json").read_text()) == results
    # A record of the teacher; for each seed four sizes from scratch, four students, and the sizes
    # from scratch with each student's compute.
    assert len(results["cells"]) == 1 + 2 * (4 + 4 + 3 + 3 + 2 + 1)
    assert set(statuses(results).values()) == {"done"}
    for cell in results["cells"][1:]:
        saved = json.loads((out / cell["result_file"]).read_text())
        assert cell["figures"]["nats_per_token"] == saved["nats_per_token"]
        assert saved["seed"] == cell["seed"]


def test_pairs_differ_in_the_objective_alone(size: tuple[Path, dict[str, Any]]) -> None:
    out, _ = size
    for name in ("0.1m", "1m"):
        scratch, distilled = (
            json.loads((out / "cells" / f"{name}-{arm}-seed1" / "manifest.json").read_text())
            for arm in ("from-scratch", "distilled")
        )
        assert scratch["objective"]["name"] == "next-token prediction"
        assert distilled["objective"]["name"] == "distillation"
        for same in ("model", "seed", "data", "tokenizer"):
            assert scratch[same] == distilled[same]


def test_summary_and_differences(size: tuple[Path, dict[str, Any]]) -> None:
    _, results = size
    by_name = {c["name"]: c["figures"]["nats_per_token"] for c in results["cells"][1:]}
    row = results["summary"][1]
    assert (row["group"], row["arm"], row["done"]) == ("0.1m", "distilled", 2)
    values = [by_name[f"0.1m-distilled-seed{s}"] for s in (0, 1)]
    assert row["nats_per_token"] == {**student_mean(values), "values": values}
    difference = results["differences"][0]
    gains = [by_name[f"0.1m-from-scratch-seed{s}"] - values[s] for s in (0, 1)]
    assert difference["mean"] == pytest.approx(sum(gains) / 2)
    assert list(difference["by_seed"].values()) == pytest.approx(gains)
    last = results["differences"][-1]["mean"]
    assert results["trend"]["mean"] == pytest.approx(last - difference["mean"])


def test_page_has_table_plot_and_the_reports_figures(size: tuple[Path, dict[str, Any]]) -> None:
    out, results = size
    page, table = (out / "README.md").read_text(), (out / "table.md").read_text()
    assert table.strip() in page
    assert len(table.splitlines()) == 2 + 4 + 4 + 9
    assert len({len(line) for line in table.splitlines()}) == 1
    mean = results["summary"][0]["perplexity"]["mean"]
    assert f"{mean:.2f} ±" in table
    assert "| distilled (7B teacher) |   21 |   17 |  15 |" in page
    assert "arXiv 2408.00118" in page
    for difference in results["differences"]:
        assert difference["verdict"] in page
    picture = (out / "plot.svg").read_text()
    assert picture.startswith("<?xml")
    for words in ("held-out perplexity", "non-embedding parameters", "nats/token", "distilled"):
        assert words in picture


def test_a_finished_sweep_trains_nothing(
    sweep: Sweep, size: tuple[Path, dict[str, Any]], trained: Trained
) -> None:
    out, results = size
    (out / "plot.svg").unlink()
    assert run_ablation(sweep("size", largest="1m"), out) == results
    assert trained == []
    assert (out / "plot.svg").is_file()


def test_other_settings_are_refused(sweep: Sweep, size: tuple[Path, dict[str, Any]]) -> None:
    out, _ = size
    with pytest.raises(ConfigError, match=r"tokens was 90 and is 91\. .*another folder"):
        run_ablation(sweep("size", tokens=91), out)
    with pytest.raises(ConfigError, match="ablation was size and is distilled"):
        run_ablation(sweep("distilled"), out)
    with pytest.raises(ConfigError, match=r"settings was .* and is "):
        run_ablation(sweep("size", settings={"data": {"seq_len": 16}}), out)


def test_a_moved_teacher_is_the_same_another_is_not(
    sweep: Sweep, teacher: Path, tmp_path: Path, trained: Trained
) -> None:
    out = tmp_path / "sweep"
    run_ablation(sweep("distilled", seeds=1, student="0.1m"), out)
    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    trained.clear()
    run_ablation(sweep("distilled", seeds=1, student="0.1m", teacher=str(moved)), out)
    assert trained == []
    other = str(out / "cells" / "0.1m-from-scratch-seed0")
    with pytest.raises(ConfigError, match="teacher_fingerprint was "):
        run_ablation(sweep("distilled", seeds=1, student="0.1m", teacher=other), out)


def test_a_failed_cell_is_shown_and_tried_again(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, config = tmp_path / "sweep", sweep("distilled", student="0.1m")
    failing(monkeypatch, TrainingError("diverged at step 2"), "0.1m-distilled-seed0")
    results = run_ablation(config, out)
    assert results["failed"] == 1
    assert statuses(results)["0.1m-distilled-seed0"] == "failed"
    assert statuses(results)["0.1m-distilled-seed1"] == "done"
    assert results["differences"][0]["n"] == 1
    page = (out / "README.md").read_text()
    assert "1, 1 failed" in page
    assert "- 0.1m-distilled-seed0: diverged at step 2" in page

    monkeypatch.setattr(module, "run_training", run_training)
    results = run_ablation(config, out)
    assert (results["failed"], results["differences"][0]["n"]) == (0, 2)
    assert "failed" not in (out / "README.md").read_text()


@pytest.mark.parametrize("stop", [Interrupted("step 1"), KeyboardInterrupt()])
def test_stopped_and_gone_on_with(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    out, config = tmp_path / "sweep", sweep("distilled", student="0.1m")
    names: Trained = []

    def train(config: Any, out: Path, **more: Any) -> dict[str, Any]:
        names.append(out.name)
        if len(names) == 3:
            raise stop
        return run_training(config, out, **more)

    monkeypatch.setattr(module, "run_training", train)
    with pytest.raises(Interrupted, match="2 of 4 cells are done: the same command continues"):
        run_ablation(config, out)
    begun = json.loads((out / "results.json").read_text())
    assert list(statuses(begun).values()) == ["done", "done", "pending", "pending"]
    results = run_ablation(config, out)
    assert set(statuses(results).values()) == {"done"}
    assert names[3:] == ["0.1m-from-scratch-seed1", "0.1m-distilled-seed1"]


def test_a_teacher_is_trained_first_when_there_is_none(
    sweep: Sweep, tmp_path: Path, trained: Trained
) -> None:
    config = sweep("distilled", teacher=None, teacher_size="0.25m", teacher_tokens=64,
                   student="0.1m", seeds=1)  # fmt: skip
    results = run_ablation(config, tmp_path / "sweep")
    assert trained == ["teacher-0.25m", "0.1m-from-scratch-seed0", "0.1m-distilled-seed0"]
    assert [row["arm"] for row in results["summary"]] == ["from scratch", "distilled"]


def test_without_its_teacher_a_student_fails_too(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, TrainingError("diverged"), "teacher-0.25m")
    config = sweep("distilled", teacher=None, teacher_size="0.25m", teacher_tokens=64,
                   student="0.1m", seeds=1)  # fmt: skip
    results = run_ablation(config, tmp_path / "sweep")
    reasons = {c["name"]: c.get("reason", c["status"]) for c in results["cells"]}
    assert reasons == {
        "teacher-0.25m": "diverged",
        "0.1m-from-scratch-seed0": "done",
        "0.1m-distilled-seed0": "it needs the cell teacher-0.25m, which failed",
    }


def test_mistakes_are_found_before_anything_is_written(
    sweep: Sweep, tmp_path: Path, other_pieces: Any, teacher: Path
) -> None:
    out = tmp_path / "sweep"
    with pytest.raises(ConfigError, match=r"no ablation 'sise'; did you mean 'size'"):
        run_ablation(sweep("size").model_copy(update={"ablation": "sise"}), out)
    with pytest.raises(ConfigError, match="no model size '2m'"):
        run_ablation(sweep("distilled", student="2m"), out)
    with pytest.raises(ConfigError, match="leave --student out"):
        run_ablation(sweep("size", student="1m"), out)
    stranger = tmp_path / "stranger"
    shutil.copytree(teacher, stranger)
    other_pieces.save(stranger / "model")
    with pytest.raises(TokenizerError, match="another tokenizer"):
        run_ablation(sweep("distilled", teacher=str(stranger)), out)
    assert not out.exists()
    with pytest.raises(OutputError, match="something other than a sweep"):
        run_ablation(sweep("distilled"), tmp_path)


def test_settings_from_the_command_line() -> None:
    overrides = ["data.seq_len=32", "model.head_dim=8", "objective.temperature=2"]
    given = given_settings(overrides, Path("d"))
    assert given == {
        "data": {"seq_len": 32}, "model": {"head_dim": 8}, "objective": {"temperature": 2.0},
    }  # fmt: skip
    options = {"steps=3": "--tokens", "seed=1": "--seeds", "model.preset=1m": "--student"}
    for key, option in options.items():
        with pytest.raises(ConfigError, match=f"takes {option} for it"):
            given_settings([key], Path("d"))
    with pytest.raises(ConfigError, match=r"did you mean 'data\.seq_len'"):
        given_settings(["seqlen=3"], Path("d"))


def test_no_teacher_where_none_is_wanted(sweep: Sweep) -> None:
    with pytest.raises(ConfigError, match="heads has no teacher: leave --teacher out"):
        sweep("heads", teacher="x")
