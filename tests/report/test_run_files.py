import json

from fixture_runs import make_quickstart, make_run

from gemmule.report import run_files
from gemmule.report.run_files import Point


def test_of_a_step_logged_twice_the_later_counts(tmp_path):
    make_run(tmp_path / "run")
    lines = [
        {"step": 1, "tokens": 10, "loss": 5.0},
        {"step": 2, "tokens": 20, "loss": 4.0},
        {"step": 2, "tokens": 20, "split": "validation", "nats_per_token": 4.1},
        {"step": 3, "tokens": 30, "loss": None},
        {"step": 2, "tokens": 20, "loss": 3.0},
        {"step": 2, "tokens": 20, "split": "validation", "nats_per_token": 3.1},
        {"step": 4, "tokens": 40, "split": "other", "nats_per_token": 1.0},
    ]
    text = "".join(json.dumps(line) + "\n\n" for line in lines)
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    run = run_files.load(tmp_path / "run")
    assert run.evaluations == [Point(20, 3.1)]
    assert run.training == [Point(10, 5.0), Point(20, 3.0)]


def test_compute_per_token(tmp_path):
    make_run(tmp_path / "run", flops_per_token=2.5e7)
    run = run_files.load_run(tmp_path, "run")
    assert run.flops_per_token == 2.5e7
    assert not run.distilled


def test_the_longer_scratch_run_and_the_samples_may_be_missing(tmp_path):
    make_quickstart(tmp_path / "q")
    (tmp_path / "q" / "samples.json").unlink()
    (tmp_path / "q" / "scratch_equal_compute" / "manifest.json").unlink()
    quickstart = run_files.load(tmp_path / "q")
    assert quickstart.samples == []
    assert quickstart.scratch_equal_compute is None
    assert quickstart.student.distilled
