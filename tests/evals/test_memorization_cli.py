"""The verbs as a user types them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gemmule import cli
from gemmule.cli import app
from gemmule.errors import ConfigError, Interrupted
from gemmule.evals.memorization import extraction as measuring
from gemmule.evals.memorization import results_table
from gemmule.runs.metrics import read_metrics

SHORT = ["--prompt-tokens", "10", "--continuation-tokens", "10", "--probes", "30"]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmule.console.console.width", 160)


def gemmule(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_a_run_is_measured_and_shown(
    by_heart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(by_heart, run)
    result = json.loads(gemmule("memorization", run, *SHORT, "--json").stdout)
    assert result == json.loads((run / "evals/memorization.json").read_text())
    capsys.readouterr()
    results_table.show(result)
    shown = capsys.readouterr().err
    for words in ("training text, run", "control: text never read", "canaries, 64 in the text"):
        assert words in shown
    assert "100.00 (34.24 to 100.00)" in shown
    assert "reproduced personal data" in shown
    assert "at most 1 edits" in shown


def test_two_runs_are_shown_with_their_difference(by_heart: Path, tmp_path: Path) -> None:
    arguments = ["memorization", by_heart, *SHORT, "--against", by_heart, "--out", tmp_path]
    shown = gemmule(*arguments).stderr
    assert "difference, paired" in shown
    assert "+0.00 (-" in shown


def test_a_control_that_could_not_be_measured_is_no_zero(
    by_heart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(
        gemmule("memorization", by_heart, *SHORT, "--json", "--out", tmp_path).stdout
    )
    result["control"] = {"probes": 0, "exact": None, "approximate": None, "why": "too short"}
    result["canaries"] = None
    capsys.readouterr()
    results_table.show(result)
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.strip().startswith("control")]
    assert line.count("not measured") == 2


def test_stopped_it_says_how_to_go_on(
    by_heart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring.Extractor, "outcomes", stop)
    with pytest.raises(Interrupted, match="the same command continues from there"):
        gemmule("memorization", by_heart, *SHORT, "--out", tmp_path)


def test_bad_input_is_one_message(
    by_heart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["memorization", tmp_path / "no-run"], "is not a run of gemmule's"),
        (["memorization", by_heart, "--probes", "0"], "probes is 0; it must be at least 1"),
        (["memorization", by_heart], "do not fit into this model's context of 64"),
        (["memorization", by_heart, *SHORT, "--data", tmp_path], "is not a finished data folder"),
        (["memorization", by_heart, *SHORT, "--against", tmp_path], "holds nothing"),
        (["canaries", tmp_path, "--out", tmp_path / "x"], "is not a finished data folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(a) for a in arguments])
        assert stopped.value.code == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_canaries_are_planted(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "planted"
    result = json.loads(
        gemmule(
            "canaries", prepared, "--out", out, "--repeats", "1,3", "--each", 1, "--json"
        ).stdout
    )
    assert result["canaries"]["repeats"] == [1, 3]
    assert json.loads((out / "manifest.json").read_text())["fingerprint"] == result["fingerprint"]
    with pytest.raises(ConfigError, match="not a list of numbers"):
        gemmule("canaries", prepared, "--out", tmp_path / "x", "--repeats", "1;3")


@pytest.mark.usefixtures("no_meter")
def test_train_follows_it(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tomli_w

    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(tiny(steps=4)))
    given = ["every=2", "probes=5", "prompt_tokens=10", "continuation_tokens=10"]
    settings = [x for name in given for x in ("--set", f"evaluation.memorization.{name}")]
    gemmule("train", tmp_path / "recipe.toml", *settings, "--out", tmp_path / "run")
    lines = [m for m in read_metrics(tmp_path / "run") if m.get("probe") == "memorization"]
    assert [m["step"] for m in lines] == [2, 4]
