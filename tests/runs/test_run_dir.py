import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from gemmule import console
from gemmule.config import Config
from gemmule.console import ProgressBar, counting, duration, table
from gemmule.errors import OutputError
from gemmule.runs.run_dir import RunDir, claim


class Settings(Config):
    seed: int = 0


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", Settings(seed=3))
    assert (tmp_path / "run" / "config.toml").read_text() == "seed = 3\n"
    with pytest.raises(OutputError, match="is already in use: add --resume"):
        RunDir.create(tmp_path / "run", Settings())
    RunDir.open(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    RunDir.create(tmp_path / "empty", Settings())


def test_what_a_kill_left_does_not_block_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".config.toml.123.tmp").touch()
    claim(tmp_path)
    assert not any(tmp_path.iterdir())
    (tmp_path / ".git").mkdir()
    with pytest.raises(OutputError, match="already in use: choose another folder"):
        claim(tmp_path)


def test_places_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"a file of that name, or .* is in the way"):
        claim(tmp_path / "file")
    with pytest.raises(OutputError, match="a part of the path is a file"):
        claim(tmp_path / "file" / "a")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(OutputError, match="holds no run to resume"):
        RunDir.open(tmp_path)


def test_manifest_names_versions_and_machine(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", Settings())
    run.write_manifest({"kind": "train", "data": {}, "model": {}})
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["kind"] == "train"
    assert {"python", "torch", "numpy"} <= set(manifest["versions"])
    assert manifest["machine"]["cores"] >= 1
    assert manifest["machine"]["memory_gib"] > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7805, "2 h 10 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A console that is no terminal."""
    written = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=written, width=100))
    return written


def test_progress_in_plain_lines(lines: io.StringIO, clock: Clock) -> None:
    with ProgressBar("training", 1000, "tok", start=200) as bar:
        for done in (300, 400, 500, 1000):
            clock.now += 10
            bar.update(done, "loss 2.5")
    # Every 15 seconds at most; the rate leaves out what was done before, and is a recent one.
    assert lines.getvalue().splitlines() == [
        "training  40% 10 tok/s, 1 min 00 s left loss 2.5",
        "training 100% 30 tok/s loss 2.5",
    ]


def test_a_total_that_is_known_better_by_now(lines: io.StringIO, clock: Clock) -> None:
    with ProgressBar("training", 1000, "tok") as bar:
        clock.now += 20
        bar.update(100, total=200)  # short answers: far fewer tokens than were guessed
    assert lines.getvalue().splitlines() == ["training  50% 5.0 tok/s, 20 s left"]


def test_counting_waits_for_a_total(lines: io.StringIO, clock: Clock) -> None:
    with counting("tokenizing") as progress:
        progress(64, 0, "documents")
        for done in (1, 2, 3):
            clock.now += 9
            progress(done, 4, "bytes")
    assert lines.getvalue().count("tokenizing") == 1


def test_table_keeps_markup_like_text(lines: io.StringIO) -> None:
    table(["model", "loss"], [["[bold]x[/bold]", "1.25"]])
    assert "[bold]x[/bold]" in lines.getvalue()
    assert "1.25" in lines.getvalue()
