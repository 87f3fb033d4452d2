"""Lines of the ledger: what an activity used is in it once, however it ended."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_machine import FakeMachine, line
from gemmule.errors import CheckpointError, ConfigError, Interrupted, TrainingError
from gemmule.runs import carbon
from gemmule.runs.ledger import activity as ledger
from gemmule.runs.ledger import heartbeat
from gemmule.runs.ledger.activity import activity, note
from gemmule.runs.ledger.compose import Share
from gemmule.runs.ledger.file import append, ledger_of, own_lines, read_ledger, run_of
from gemmule.runs.ledger.line import Line, Source, energy_interval


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMachine:
    machine = FakeMachine()
    monkeypatch.setattr(carbon, "start_tracker", machine.open)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return machine


def made(folder: Path) -> Path:
    """A folder with a content."""
    folder.mkdir(parents=True)
    (folder / "file").write_text("content")
    return folder


def test_a_line_says_what_was_used_and_how_it_is_known(
    machine: FakeMachine, tmp_path: Path
) -> None:
    run = made(tmp_path / "run")
    with activity("train", run):
        machine.cpu += 360
        machine.gpu += 100
        note(tokens_in=500, flop=1e9, product="abc", parameters=7)
    (written,) = read_ledger(run)
    assert {name: part.joules for name, part in written.joules.items()} == {"cpu": 360, "gpu": 100}
    assert written.joules["cpu"].method == "model"
    assert written.joules["gpu"].how == "measured by a test"
    assert written.not_measured == {"memory": "not measured"}
    assert written.energy_wh is not None
    assert written.energy_wh.best == pytest.approx(460 / 3600)
    assert written.energy_wh.low == pytest.approx((180 + 95) / 3600)
    assert written.energy_wh.high == pytest.approx((720 + 105) / 3600)
    assert written.gco2e is not None
    assert written.gco2e.best == pytest.approx(written.energy_wh.best * 0.475)
    assert (written.outcome, written.name, written.kind) == ("finished", "run", "train")
    assert (written.tokens_in, written.flop, written.product) == (500, 1e9, "abc")
    assert written.market is written.market_gco2e is written.water is None
    assert written.embodied.gco2e >= 0
    assert "H100" in written.embodied.source
    assert not heartbeat.ended(run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_settings_of_the_machine_are_in_the_line(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "footprint.toml"
    settings.write_text(
        "grid = 100\nmarket = 0\npue = 1.5\nwater_site = 1\nwater_grid = 2\nembodied_kg = 8766\n"
        "lifetime_years = 1\n"
    )
    monkeypatch.setenv("GEMMULE_FOOTPRINT", str(settings))
    run = made(tmp_path / "run")
    with activity("train", run):
        machine.cpu += 3.6e6
    (written,) = read_ledger(run)
    assert written.energy_wh is not None
    assert written.energy_wh.best == pytest.approx(1500)
    assert written.gco2e is not None
    assert written.gco2e.best == pytest.approx(150)
    assert written.market_gco2e == 0  # a contract's zero is not the grid's
    assert written.water is not None
    assert written.water.liters == pytest.approx(1 * (1 + 1.5 * 2))
    assert written.embodied.gco2e == pytest.approx(1000 * written.seconds / 3600, abs=1e-3)
    assert "PUE of 1.5" in written.boundary


def test_lines_of_inner_activities_add_up_to_the_meter(
    machine: FakeMachine, tmp_path: Path
) -> None:
    outer, first, second = (made(tmp_path / name) for name in ("outer", "first", "second"))
    before = machine.cpu
    with activity("quickstart", outer):
        machine.cpu += 1
        with activity("data", first):
            machine.cpu += 10
        machine.cpu += 2
        with pytest.raises(TrainingError), activity("train", second):
            machine.cpu += 100
            raise TrainingError("diverged")
        with activity("quickstart", outer):  # a part of the same
            machine.cpu += 4
    lines = [*read_ledger(outer), *read_ledger(first), *read_ledger(second)]
    assert [entry.total_joules for entry in lines] == [7, 10, 100]
    assert [entry.outcome for entry in lines] == ["finished", "finished", "failed"]
    assert sum(entry.total_joules for entry in lines) == machine.cpu - before
    assert machine.opened == 1
    assert lines[0].seconds <= 10


def test_an_unfinished_output_is_not_taken_for_a_content(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues there: it must find what it left, and no more."""
    monkeypatch.setattr(heartbeat, "SECONDS", 0.0)
    out = tmp_path / "out"
    (out / ".out.partial").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), activity("convert", out):
        machine.cpu += 8
        raise KeyboardInterrupt
    assert [p.name for p in out.iterdir()] == [".out.partial"]
    assert [(e.outcome, e.total_joules) for _, e in heartbeat.ended(out)] == [("stopped", 8)]


def test_an_inner_activity_without_a_place_stays_with_the_outer_one(
    machine: FakeMachine, tmp_path: Path
) -> None:
    outer = made(tmp_path / "outer")
    with activity("quickstart", outer):
        with pytest.raises(MemoryError), activity("tokenizer", tmp_path / "never there"):
            machine.cpu += 10
            raise MemoryError
        machine.cpu += 1
    assert [entry.total_joules for entry in read_ledger(outer)] == [11]


def test_a_ledger_that_cannot_be_written_does_not_cost_the_run(
    machine: FakeMachine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    with activity("train", run):
        ledger_of(run).write_text("not a ledger\n")
    assert "the cost is not in the ledger: " in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (TrainingError("diverged"), "failed"),
        (MemoryError(), "failed"),
        (Interrupted("stopped"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (SystemExit(0), "finished"),
        (SystemExit(1), "failed"),
    ],
)
def test_whatever_ends_an_activity_it_is_a_line(
    error: BaseException, outcome: str, machine: FakeMachine, tmp_path: Path
) -> None:
    run = made(tmp_path / "run")
    with pytest.raises(type(error)), activity("train", run):
        note(product="never finished")
        machine.cpu += 5
        raise error
    (written,) = read_ledger(run)
    assert (written.outcome, written.total_joules) == (outcome, 5)
    assert (written.product is None) == (outcome != "finished")


def test_a_command_that_is_refused_leaves_nothing(machine: FakeMachine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError), activity("train", tmp_path / "run"):
        raise ConfigError("no such setting")
    with activity("train", made(tmp_path / "done")):
        ledger.drop()
    assert [p.name for p in tmp_path.iterdir()] == ["done"]
    assert read_ledger(tmp_path / "done") == []


def test_what_failed_before_its_folder_was_there_is_counted_with_the_next(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.0)
    run = tmp_path / "tokenizer"
    with pytest.raises(MemoryError), activity("tokenizer", run):
        machine.cpu += 30
        raise MemoryError
    assert not run.exists()
    with activity("tokenizer", run):
        machine.cpu += 4
        made(run)
    assert [(e.outcome, e.total_joules) for e in read_ledger(run)] == [
        ("failed", 30), ("finished", 4),
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer"]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fake_machine import FakeMachine
from gemmule.runs import carbon
from gemmule.runs.ledger import heartbeat
from gemmule.runs.ledger.activity import activity, note
heartbeat.SECONDS = 0.05
machine = FakeMachine()
carbon.start_tracker = machine.open
with activity("train", Path(sys.argv[1])):
    with activity("data", Path(sys.argv[1]) / "data"):
        machine.cpu += 10
    machine.cpu += 77
    note(tokens_in=5)
    time.sleep(0.3)
    print("running", flush=True)
    time.sleep(60)
"""


def test_a_killed_activity_is_a_line_at_the_next_start(
    machine: FakeMachine, tmp_path: Path
) -> None:
    run = made(tmp_path / "run")
    made(run / "data")
    here = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run), here], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    with activity("evaluate", run):  # next to one that runs
        pass
    assert [entry.kind for entry in read_ledger(run)] == ["evaluate"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [(e.outcome, e.total_joules) for _, e in heartbeat.ended(run)] == [("killed", 77)]
    with activity("train", run):
        machine.cpu += 3
    lines = read_ledger(run)
    assert [(e.outcome, e.total_joules) for e in lines[1:]] == [("killed", 77), ("finished", 3)]
    killed = lines[1]
    assert killed.tokens_in == 5
    assert killed.energy_wh is not None
    # The upper end has what was used after the last beat, at the mean power.
    assert killed.energy_wh.high > 2 * 77 / 3600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    assert [e.total_joules for e in read_ledger(run / "data")] == [10]


def test_a_torn_line_is_cut_off_and_lines_are_kept_once(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    append(run, [line("a")])
    with ledger_of(run).open("a") as f:
        f.write('{"id": "b", "ki')
    assert [entry.id for entry in read_ledger(run)] == ["a"]
    append(run, [line("c"), line("a"), line("c")])
    assert [entry.id for entry in read_ledger(run)] == ["a", "c"]
    with ledger_of(run).open("a") as f:
        f.write("x\n")
    with pytest.raises(CheckpointError, match="line 3: not JSON"):
        read_ledger(run)


def test_the_ledger_of_a_copy_is_told_from_that_of_its_sources(tmp_path: Path) -> None:
    teacher, student = made(tmp_path / "teacher"), made(tmp_path / "student")
    append(teacher, [line("t")])
    append(student, [line("s")])
    append(student, read_ledger(teacher))
    assert [entry.id for entry in own_lines(student)] == ["s"]
    assert {entry.run for entry in read_ledger(student)} == {run_of(student), run_of(teacher)}


def test_a_line_of_another_version_is_read_and_a_broken_one_named(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    append(run, [line("a", note="of a later version")])
    (read,) = read_ledger(run)
    assert read.to_json()["note"] == "of a later version"
    text = json.loads(ledger_of(run).read_text())
    ledger_of(run).write_text(json.dumps(text | {"seconds": "ten"}) + "\n")
    with pytest.raises(CheckpointError, match=r"line 1: seconds is 'ten', not a finite number"):
        read_ledger(run)


def _append_many(run: str, name: str) -> None:
    for number in range(20):
        append(Path(run), [line(f"{name}{number}")])


def test_processes_append_at_once(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(str(run), n)) for n in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = read_ledger(run)
    assert len({entry.id for entry in lines}) == 60
    assert len({entry.run for entry in lines}) == 1


def test_shares_of_an_activity_go_to_several_folders(machine: FakeMachine, tmp_path: Path) -> None:
    first, second = made(tmp_path / "first"), made(tmp_path / "second")
    with activity("serve", None):
        machine.cpu += 100
        note(shares={first: Share(0.25), second: Share(0.75, tokens_out=7)}, tokens_out=40)
    (a,), (b,) = read_ledger(first), read_ledger(second)
    assert (a.total_joules, b.total_joules) == (25, 75)
    assert (a.tokens_out, b.tokens_out) == (10, 7)
    assert a.id != b.id


def test_one_process_of_a_machine_meters(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of two processes: each machine has a line, and tokens are counted once."""
    run = made(tmp_path / "run")
    for rank in range(4):
        for name, value in (
            ("RANK", rank), ("LOCAL_RANK", rank % 2), ("WORLD_SIZE", 4), ("LOCAL_WORLD_SIZE", 2),
        ):  # fmt: skip
            monkeypatch.setenv(name, str(value))
        with activity("train", run):
            machine.cpu += 10
            note(tokens_in=100)
    lines = read_ledger(run)
    assert [entry.devices.node for entry in lines] == [0, 1]
    assert [entry.devices.nodes for entry in lines] == [2, 2]
    assert [entry.tokens_in for entry in lines] == [100, None]


def test_without_a_meter_the_line_says_why(no_meter: None, tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    with activity("train", run):
        pass
    (written,) = read_ledger(run)
    assert written.energy_wh is written.gco2e is None
    assert written.joules == {}
    assert "left out by the test" in written.not_measured["cpu"]


def test_a_read_only_folder_costs_only_the_line(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run")

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with activity("chat", None):
        note(shares={run: Share(1.0)})
        monkeypatch.setattr(os, "open", refused)
    monkeypatch.undo()
    assert read_ledger(run) == []


def test_intervals_come_from_the_method() -> None:
    one = line("a").joules
    interval = energy_interval(one, 2.0)
    assert interval is not None
    assert (interval.low, interval.best, interval.high) == pytest.approx((1.9, 2.0, 2.1))
    assert energy_interval({}, 1.0) is None


def test_a_heartbeat_of_another_machine_is_waited_for(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "run")
    assert heartbeat.write(run, line("a"))
    path = heartbeat.heartbeat_of(run, "a")
    content = json.loads(path.read_text())
    content["process"]["host"] = "another"
    path.write_text(json.dumps(content))
    assert heartbeat.ended(run) == []
    past = time.time() - 3600
    os.utime(path, (past, past))
    assert [entry.id for _, entry in heartbeat.ended(run)] == ["a"]


def test_sources_are_told_by_roles(tmp_path: Path) -> None:
    source = Source(role="teacher", name="big", fingerprint="f", run="r", tokens=10)
    entry = line("a", sources=[source])
    assert Line.parse(json.loads(json.dumps(entry.to_json())), "x") == entry
