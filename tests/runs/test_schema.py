"""Files of a run made by version 0.1.0 are read, and written again byte for byte.

The files in files/ are those of a quickstart's student and of its evaluations, shortened.
"""

import json
from pathlib import Path

import pytest

from gemmule.errors import CheckpointError
from gemmule.runs import metrics
from gemmule.runs.carbon import Energy
from gemmule.runs.layout import QUICKSTART_RUNS, QuickstartLayout, RunLayout, runs_in
from gemmule.runs.schema import Comparison, Manifest, MetricsLine, Result, RunFile
from gemmule.runs.schema_evals import (
    Benchmarks,
    BenchmarkScore,
    Memorization,
    MissingSafetyScore,
    Safety,
)

FILES = Path(__file__).parent / "files"
KINDS: dict[str, type[RunFile]] = {
    "manifest.json": Manifest,
    "result.json": Result,
    "carbon.json": Energy,
    "comparison.json": Comparison,
    "benchmarks.json": Benchmarks,
    "safety.json": Safety,
    "memorization.json": Memorization,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    value = KINDS[name].read(FILES / name)
    value.write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == (FILES / name).read_bytes()
    assert KINDS[name].read(tmp_path / name) == value


def test_lines_of_metrics() -> None:
    lines = metrics.read(FILES / "metrics.jsonl")
    parsed = [MetricsLine.parse(line, "metrics.jsonl") for line in lines]
    assert [line.to_json() for line in parsed] == lines
    losses = [line.number("loss") for line in parsed if line.split is None]
    assert all(loss is not None and 3 < loss < 9 for loss in losses)
    assert {line.split for line in parsed} == {None, "validation"}
    assert MetricsLine(tokens=1, loss=None, probe="x").number("loss") is None
    assert MetricsLine(tokens=1, loss="high").number("loss") is None


def test_what_readers_rely_on() -> None:
    manifest = Manifest.read(FILES / "manifest.json")
    assert manifest.distilled
    assert manifest.parent is not None
    assert manifest.parent.path == "/home/user/runs/quickstart/teacher"
    assert Result.read(FILES / "result.json").train_tokens == 430_080
    benchmarks = Benchmarks.read(FILES / "benchmarks.json")
    assert isinstance(benchmarks.rows["piqa"], BenchmarkScore)
    safety = Safety.parse(
        {"kind": "safety", "figures": {"toxigen": {"missing": "no classifier"}}}, "safety.json"
    )
    assert isinstance(safety.figures["toxigen"], MissingSafetyScore)


def test_unknown_fields_are_kept_and_unset_ones_are_not_written() -> None:
    value = {"tokens": 3, "later": {"b": 1, "a": [2]}, "step": 1}
    assert json.dumps(MetricsLine.parse(value, "x").to_json()) == json.dumps(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perplexity": float("nan")}, "perplexity is nan, not a finite number; restore it"),
        ({"perplexity": float("inf")}, "perplexity is inf, not a finite number"),
        ({"perplexity": "3"}, "perplexity is '3', not a finite number"),
        ({"perplexity": True}, "perplexity is True, not a finite number"),
        ({"perplexity": ["x" * 100]}, "perplexity is of type list, not a finite number"),
        ({"split": 3}, "split is 3: input should be a valid string"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], message: str) -> None:
    good = json.loads((FILES / "result.json").read_text())
    with pytest.raises(CheckpointError, match=f"^run/result.json: {message}"):
        Result.parse(good | change, "run/result.json")
    del good["parameters"]
    with pytest.raises(CheckpointError, match=r"parameters is missing; restore it, or make the"):
        Result.parse(good, "run/result.json")


def test_a_file_that_cannot_be_parsed(tmp_path: Path) -> None:
    for content, message in (("{", "is not readable JSON"), ("[]", "expected a JSON object")):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            Result.read(tmp_path / "result.json")
    with pytest.raises(CheckpointError, match=r"no manifest\.json in .*: the run is not complete"):
        Manifest.read(tmp_path / "manifest.json")


def test_the_runs_of_a_folder(tmp_path: Path) -> None:
    assert runs_in(tmp_path) == [RunLayout(tmp_path)]
    for name in QUICKSTART_RUNS[:3]:
        (tmp_path / name).mkdir()
    QuickstartLayout(tmp_path).comparison.write_text("{}")
    assert [run.path.name for run in runs_in(tmp_path)] == ["teacher", "scratch", "student"]


def test_metrics_grow_and_are_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics.cut(path, 0)  # nothing there yet
    for step in range(1, 5):
        metrics.append(path, {"step": step, "loss": float("nan") if step == 2 else 1.5})
    with path.open("a") as f:
        f.write('{"step": 5, "lo')
    assert [m["loss"] for m in metrics.read_metrics(tmp_path)] == [1.5, None, 1.5, 1.5]
    metrics.cut(path, 3)
    metrics.append(path, {"step": 4, "loss": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_metrics_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(CheckpointError, match=r"no metrics\.jsonl in"):
        metrics.read(path)
    path.write_text('{"step": 1}\n\n{"step": 2, "lo')
    assert metrics.read(path, may_be_cut=True) == [{"step": 1}]
    with pytest.raises(CheckpointError, match="line 3: not JSON"):
        metrics.read(path)
    path.write_text("[]\n")
    with pytest.raises(CheckpointError, match="line 1: not a JSON object"):
        metrics.read(path)
