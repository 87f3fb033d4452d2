"""The command, its table and its exit code."""

import json

import pytest
from typer.testing import CliRunner

from gemmule.cli import app, main
from gemmule.doctor.findings import Finding, property_row
from gemmule.doctor.report import Check, number, summary
from gemmule.model import gemma


def test_exit_code_and_json(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = CliRunner().invoke(app, ["doctor", folder, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["failed"] == []
    assert {"check", "result", "figure", "meaning"} == set(report["rows"][0])
    monkeypatch.setattr(gemma, "gelu_tanh", lambda x: x.relu())
    done = CliRunner().invoke(app, ["doctor", folder, "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["failed"] == ["nothing else differs"]


def test_a_user_mistake_is_no_finding(folder: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", folder, "--backend", "nobody"])
    assert stopped.value.code == 2


def test_the_table_shows_every_row(folder: str) -> None:
    done = CliRunner().invoke(app, ["doctor", folder])
    shown = done.output
    assert "tanh GELU" in shown
    assert "24 pass, 1 not tested in" in shown


@pytest.mark.parametrize(
    ("error", "effect", "result"),
    [(1.0, 9.0, "pass"), (1.0, 2.1, "pass"), (1.0, 1.9, "cannot tell"), (1.0, None, "cannot tell"),
     (1.1, 9.0, "FAIL"), (float("inf"), 9.0, "cannot tell")],
)  # fmt: skip
def test_a_pass_could_have_failed(error: float, effect: float | None, result: str) -> None:
    row = property_row("x", [Finding("here", error, 1.0, effect)], "good", "bad")
    assert row.result == result


def test_the_worst_weights_count() -> None:
    findings = [Finding("here", 0.0, 1.0, 9.0), Finding("there", 3.0, 1.0)]
    row = property_row("x", findings, "good", "bad")
    assert (row.result, row.figure) == ("FAIL", "3 > 1")
    assert "there" in row.meaning
    assert property_row("x", [], "good", "bad").result == "not tested"


def test_figures() -> None:
    assert [number(x) for x in (0, 3.2e-6, 0.02, 1.234, 57.0)] == ["0", "3e-6", "0.02", "1.2", "57"]
    rows = [Check("a", "pass", "", ""), Check("b", "FAIL", "", ""), Check("c", "pass", "", "")]
    assert summary(rows) == "1 FAIL, 2 pass"
