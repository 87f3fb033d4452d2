"""Reports of a run: complete on the first rank, nothing on the others."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from gemmule import console
from gemmule.runs import reporter
from gemmule.runs.layout import RunLayout
from gemmule.runs.metrics import read_metrics
from gemmule.runs.reporter import Reporter
from gemmule.runtime.world import World
from ranks import run_ranks


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    terminal = Console(file=written, width=100)
    monkeypatch.setattr(console, "console", terminal)
    monkeypatch.setattr(reporter, "console", terminal)
    monkeypatch.setattr(console.ProgressBar, "PLAIN_SECONDS", 0.0)
    return written


def session(layout: RunLayout, world: World, step: int = 0) -> None:
    with Reporter(layout, world, label="student", total=30, step=step, done=10 * step) as report:
        for n in range(step + 1, 4):
            report.progress(10 * n, f"loss {4 - n}")
            report.log(n, 10 * n, 0.12345, {"loss": 4.0 - n, "rate": math.nan})
        report.log(3, 30, 0.5, {"split": "validation", "perplexity": 20.5})
        report.log(3, 30, 0.5, {"probe": "memorization", "extracted": 0.25, "model": "m"})
        report.message("done [bold]")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow")
def test_metrics_events_progress_and_messages(tmp_path: Path, printed: io.StringIO) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    layout = RunLayout(tmp_path)
    session(layout, World())
    session(layout, World(), step=2)  # resumed: what came after step 2 is logged again
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 3]
    assert lines[0] == {"step": 1, "tokens": 10, "seconds": 0.123, "loss": 3.0, "rate": None}
    assert lines[-1]["probe"] == "memorization"
    events = EventAccumulator(str(layout.tensorboard)).Reload()
    assert {"train/loss", "validation/perplexity", "memorization/extracted"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3]
    text = printed.getvalue()
    assert "student  33%" in text
    assert "loss 3" in text
    assert "done [bold]" in text


def test_another_rank_is_silent(tmp_path: Path, printed: io.StringIO) -> None:
    second = World()
    second.rank = 1
    session(RunLayout(tmp_path / "run"), second)
    assert printed.getvalue() == ""
    assert not (tmp_path / "run").exists()


def test_of_two_ranks_one_reports(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from gemmule.runs.layout import RunLayout
from gemmule.runs.reporter import Reporter
from gemmule.runtime.world import World
with World.from_env("cpu") as world:
    with Reporter(RunLayout(Path(sys.argv[1])), world, label="run", total=10) as report:
        total, = world.sum([1.0])
        report.progress(10)
        report.log(1, 10, 1.0, {"loss": total})
        report.message(f"rank {world.rank} of {world.size}")
"""
    first, second = run_ranks(["-c", code, str(tmp_path)])
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "rank 0 of 2" in first.err
    assert "rank" not in second.err.replace("[rank1]", "")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [2.0]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
