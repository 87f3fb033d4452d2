"""The card's safety section: figures traceable, what is missing said, nobody's folders shown."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fixture_runs import make_run

from gemmule.errors import CheckpointError
from gemmule.report import write_card


def figure(title: str, value: float, **more: Any) -> dict[str, Any]:
    about = {"title": title, "benchmark": "x", "better": "higher", "chance": 50.0, "report": {}}
    return {**about, "value": value, "low": value - 3, "high": value + 3, "n": 1508, **more}


def result(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "kind": "safety",
        "model": {"path": "/home/somebody/model"},
        "scorer": {"kind": "classifier", "name": "/home/somebody/judge-of-tone", "label": "toxic",
                   "weights": "ab" * 32, "threshold": 0.5},
        "report": {"source": "the report's table", "sizes": ["2B", "9B", "27B"]},
        "figures": {
            "crows-pairs": figure("CrowS-Pairs", 61.5, report={"2B": 37.67, "9B": 37.47,
                                                               "27B": 36.67}),
            "bbq-ambiguous-bias": figure("BBQ bias", -1.25, better="zero", chance=0.0),
            "toxigen": {"title": "ToxiGen", "missing": "not measured: no toxicity classifier"},
        },
        "benchmarks": {"crows-pairs": {"title": "CrowS-Pairs", "asked": 1508, "there": 1508,
                                       "notes": ["<i>as</i> it is"]}},
        "gate": {"file": "gate.toml", "passed": False, "checks": [
            {"figure": "crows-pairs", "rule": "at most 60", "passed": False, "found": "61.50"},
            {"figure": "bbq-ambiguous-bias", "rule": "at most 5", "passed": True, "found": "-1.25"},
        ]},
        **changes,
    }  # fmt: skip


def card_of(folder: Path, content: Any) -> tuple[str, str]:
    make_run(folder)
    (folder / "evals").mkdir()
    (folder / "evals/safety.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    card = write_card(folder)
    html = (card / "index.html").read_text(encoding="utf-8")
    return html, (card / "README.md").read_text(encoding="utf-8")


def test_figures_name_file_and_key(tmp_path: Path) -> None:
    html, text = card_of(tmp_path / "run", result())
    for key, shown in (
        ("figures.crows-pairs.value", "61.50"), ("figures.crows-pairs.low", "58.5"),
        ("figures.crows-pairs.report.9B", "37.47"), ("figures.bbq-ambiguous-bias.chance", "0.0"),
        ("gate.passed", "failed"), ("scorer.label", "toxic"),
    ):  # fmt: skip
        assert re.search(rf'title="evals/safety\.json: {re.escape(key)}">{re.escape(shown)}<', html)
        assert f"| evals/safety.json | {key} |" in text.replace("\\_", "_")
    assert "| CrowS-Pairs | 61.50 | 58.5 to 64.5 | 50.0 | 37.67 | 37.47 | 36.67 | 1,508 |" in text
    assert "| BBQ bias | -1.25 | -4.2 to 1.8 | 0.0 | | | | 1,508 |" in text
    assert "ToxiGen: not measured: no toxicity classifier" in text
    assert "**Safety gate gate.toml: failed.**" in text
    assert "- failed: crows-pairs: at most 60; 61.50" in text
    assert "1,508 questions; &lt;i&gt;as&lt;/i&gt; it is" in html
    assert "somebody" not in html + text


def test_a_bias_stands_on_a_scale_of_its_own(tmp_path: Path) -> None:
    html, _ = card_of(tmp_path / "run", result())
    assert '<i class="dot" style="left:61.5%">' in html
    assert '<i class="dot" style="left:49.38%">' in html  # -1.25 between -100 and 100


def test_without_a_scorer_and_without_a_gate(tmp_path: Path) -> None:
    html, text = card_of(tmp_path / "run", result(scorer=None, gate=None))
    assert "Toxicity: not measured, because no classifier was named." in text
    assert "Safety gate" not in html


def test_nothing_measured_no_section(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    card = write_card(tmp_path / "run")
    assert "## Safety" not in (card / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "expected a JSON object"),
        ({"kind": "other"}, "kind is 'other': input should be 'safety'; measure again"),
        (
            result(figures={"x": figure("x", 1.0, n="many")}),
            r"figures\.x\.n is 'many', not a",
        ),
        (result(figures={"x": figure("x", 1.0, report=[1, 2, 3])}), r"x\.report is \[1, 2,"),
        (result(figures={"x": 3}), r"figures\.x is 3: "),
        (result(benchmarks={"x": {"title": "x"}}), r"benchmarks\.x\.asked is missing"),
        (result(gate={"file": "g", "checks": [{}]}), r"gate\.checks\.0\.figure is missing"),
    ],
)
def test_a_broken_result_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        card_of(tmp_path / "run", content)
