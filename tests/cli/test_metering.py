"""Commands are metered in one place: what a command did is in a ledger, whatever became of it."""

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import typer

from gemmule import cli
from gemmule.cli import metering
from gemmule.cli.app import app
from gemmule.errors import TrainingError
from gemmule.model.tokenizer import Tokenizer
from gemmule.runs.ledger import budget
from gemmule.runs.ledger.budget import spent
from gemmule.runs.ledger.file import own_lines, read_ledger
from gemmule.runs.power.machine import MachineMeter, Source
from gemmule.train import loop

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 3,600 W: a watt-hour a second."""

    def joules() -> float:
        return 3600 * time.monotonic()

    monkeypatch.setattr(
        "gemmule.runs.carbon.start_tracker",
        lambda: MachineMeter({"cpu": [Source(joules, "counter")]}, {"cpu": "by the clock"}),
    )


def run(*arguments: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(a) for a in arguments])
    assert stopped.value.code == code


def test_every_metered_command_exists() -> None:
    group: Any = typer.main.get_command(app)
    commands = [*group.commands.values()]
    commands += [c for each in commands for c in getattr(each, "commands", {}).values()]
    names = {c.callback.__name__ for c in commands if c.callback is not None}
    assert {*metering.MAKES, *metering.USES} <= names
    assert set(metering.MAKES) >= metering.WITH_BUDGET
    # Those that only look something up, or take a moment.
    assert names - {*metering.MAKES, *metering.USES} == {
        "card", "data_export", "decontamination", "doctor", "info", "launch", "ledger", "plan",
        "quality_preview", "when",
    }  # fmt: skip
    for command in commands:
        options = {name for p in command.params for name in p.opts}
        has = {"--max-wh", "--max-gco2e"} <= options
        name = command.callback.__name__ if command.callback is not None else ""
        # A plan takes a budget as a question, and spends nothing.
        assert has == (name in {*metering.WITH_BUDGET, "plan"}), name


def test_a_model_and_its_teacher_from_the_command_line(
    pieces: Tokenizer, text_folder: Path, tiny: Settings, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Tokenizer, data, teacher, record, student: one lineage, which travels with the student."""
    tokenizer, data = tmp_path / "tokenizer", tmp_path / "data"
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    run("tokenizer", "train", text_folder, "--vocab-size", 512, "--out", tokenizer)
    run("data", text_folder, "--tokenizer", tokenizer, "--out", data)
    settings = tmp_path / "tiny.toml"
    values = tiny(steps=2)
    values["data"]["path"] = str(data)
    settings.write_text(tomli_w.dumps(values))
    run("train", settings, "--out", teacher)
    run("distill", settings, "--teacher", teacher, "--out", student)
    kinds = [line.kind for line in read_ledger(student)]
    assert kinds[0] == "distill"
    assert sorted(kinds[1:]) == ["data", "tokenizer", "train"]
    assert len({line.run for line in read_ledger(student)}) == 4
    own, *_ = read_ledger(student)
    roles = {source.role: source for source in own.sources}
    assert set(roles) == {"data", "tokenizer", "teacher"}
    assert roles["teacher"].fingerprint == own_lines(teacher)[0].product
    assert roles["data"].fingerprint == own_lines(data)[0].product
    assert roles["tokenizer"].fingerprint == own_lines(tokenizer)[0].product
    assert roles["teacher"].tokens == own.tokens_in == 2 * 4 * 24
    assert own.flop is not None
    assert own.flop > 0

    capsys.readouterr()
    run("ledger", student, "--json")
    cost = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in cost["stages"]] == [
        "tokenizer", "data", "teacher", "student",
    ]  # fmt: skip
    assert [stage["share"] for stage in cost["stages"]] == [1, 1, 1, 1]
    assert cost["unknown_sources"] == []
    total = sum(
        line.energy_wh.best
        for place in (tokenizer, data, teacher, student)
        for line in own_lines(place)
        if line.energy_wh is not None and line.makes
    )
    assert cost["making"]["energy_wh"]["best"] == pytest.approx(total)
    run("ledger", student)
    table = capsys.readouterr().err
    assert all(word in table for word in ("student", "distill", "teacher", "made"))


def test_a_run_that_failed_is_in_the_ledger(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(tomli_w.dumps(tiny(steps=4)))
    calls = itertools.count()

    def clip(*args: Any) -> Any:
        if next(calls) == 2:
            raise TrainingError("diverged")
        return plain(*args)

    plain = loop.clip_gradients
    monkeypatch.setattr(loop, "clip_gradients", clip)
    run("train", settings, "--out", tmp_path / "run", code=1)
    (line,) = read_ledger(tmp_path / "run")
    assert (line.outcome, line.kind, line.product) == ("failed", "train", None)
    assert line.tokens_in == 2 * 4 * 24
    assert line.flop is not None


def test_a_budget_stops_a_run_that_can_be_resumed(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(budget, "EVERY", 0.02)
    monkeypatch.setattr(budget, "_SAVING_SECONDS", 0.0)
    settings, out = tmp_path / "tiny.toml", tmp_path / "run"
    endless = {"steps": 1_000_000, "log_every": 1000, "evaluation": {"every": 1_000_000}}
    settings.write_text(tomli_w.dumps(tiny(**endless)))
    run("train", settings, "--out", out, "--max-wh", 3, code=130)
    message = capsys.readouterr().err
    assert "of 3 Wh are used; stopped after step" in message
    assert "--resume" in message
    (line,) = read_ledger(out)
    assert line.outcome == "stopped"
    before, _ = spent(out)
    assert before > 1.0
    run("train", "--resume", "--out", out, "--max-wh", before / 2, code=2)
    assert "is used up: earlier sessions used" in capsys.readouterr().err
    run("train", "--resume", "--out", out, "--max-gco2e", 475 * (before + 2) / 1000, code=130)
    assert "g CO2e are used; stopped after step" in capsys.readouterr().err
    assert [line.outcome for line in read_ledger(out)] == ["stopped", "stopped"]
    assert spent(out)[0] > before


def test_a_ledger_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("ledger", tmp_path, code=2)
    assert "has no ledger.jsonl: give the folder of a run" in capsys.readouterr().err
    run("ledger", tmp_path, "--runs", tmp_path / "absent", code=2)
    assert "absent is not a folder: give one that holds runs" in capsys.readouterr().err


def test_when_to_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = tmp_path / "grid.csv"
    hours = [400, 300, 100, 120, 500, 50]
    rows = [f"2020-01-01T{hour:02}:00,{value}" for hour, value in enumerate(hours)]
    grid.write_text("\n".join(["time,gco2e_per_kwh", *rows]))
    run("when", grid, "--hours", 2)
    assert "start at 2020-01-01T02:00+00:00: 110 gCO2e/kWh" in capsys.readouterr().out
    run("when", grid, "--hours", 1, "--json")
    assert json.loads(capsys.readouterr().out)["start"] == "2020-01-01T05:00+00:00"
    run("when", grid, "--hours", 7, code=2)
    assert "covers 6 hours, less than --hours 7" in capsys.readouterr().err
    run("when", grid, "--hours", 0, code=2)
    assert "give a number above 0" in capsys.readouterr().err
