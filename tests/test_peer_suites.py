"""The suites of peers: how their results are judged, and what is recorded of the last run."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gemmule.checkpoints.hf.writer import save_model
from gemmule.model.tokenizer import Tokenizer
from models import TINY, random_model, tiny_config

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "bench/results/peer_suites.json"


def load_tool() -> ModuleType:
    path = ROOT / "tools/peer_suites/__main__.py"
    spec = importlib.util.spec_from_file_location("peer_suites", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()
RULES: dict[str, Any] = {
    "rules": [{"tests": ["unit/a.py::test_x*"], "reason": "of another model", "message": "40[04]"}]
}


def result(test: str, outcome: str = "failed", message: str = "") -> dict[str, str]:
    return {"test": test, "outcome": outcome, "message": message}


def test_a_rule_excuses_only_the_failure_that_it_names() -> None:
    excused = tool.judged(result("unit/a.py::test_x[1]", message="assert 400 == 200"), RULES)
    assert (excused["outcome"], excused["reason"]) == ("not applicable", "of another model")
    assert tool.judged(result("unit/a.py::test_x[1]", message="500"), RULES)["outcome"] == "failed"
    assert tool.judged(result("unit/a.py::test_y", message="400"), RULES)["outcome"] == "failed"
    passed = tool.judged(result("unit/a.py::test_x", "passed"), RULES)
    assert passed == {"test": "unit/a.py::test_x", "outcome": "passed"}
    assert tool.unused_rules([excused], RULES) == []
    assert tool.unused_rules([passed], RULES) == ["of another model"]


def test_every_file_of_a_suite_is_run_or_left_out_for_a_reason() -> None:
    for suite in tool.suites().values():
        run = {file for run in suite["runs"] for file in run["tests"]}
        assert not run & set(suite["left_out"])
        assert all(suite["left_out"].values())
        assert all(rule["reason"] and rule["tests"] for rule in suite["rules"])


def test_nothing_that_applies_failed() -> None:
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    assert report["suites"].keys() == tool.suites().keys()
    for name, suite in report["suites"].items():
        assert suite["package"] == tool.suites()[name]["package"]
        assert suite["counts"]["passed"] > 50
        outcomes = {test["outcome"] for test in suite["tests"]}
        assert outcomes == {"passed", "not applicable"}
        assert all(t.get("reason") for t in suite["tests"] if t["outcome"] == "not applicable")


def test_the_table_in_the_docs_is_that_of_the_result() -> None:
    report = json.loads(RESULT.read_text(encoding="utf-8"))
    assert tool.table(report) in (ROOT / "docs/serving.md").read_text(encoding="utf-8")


@pytest.mark.clients
@pytest.mark.parametrize("name", tool.suites())
def test_a_suite(name: str, pieces: Tokenizer, tmp_path: Path) -> None:
    """A suite against a tiny model: python tools/peer_suites MODEL --fetch makes it available."""
    if not tool.python_of(name).exists():
        pytest.skip(f"python tools/peer_suites MODEL --fetch --suite {name} downloads it")
    shape = tiny_config(TINY, vocab_size=pieces.vocab_size, max_position_embeddings=1024)
    save_model(random_model(shape), pieces, tmp_path / "model")
    results = tool.run_suite(name, tool.suites()[name], str(tmp_path / "model"))
    assert [r for r in results if r["outcome"] == "failed"] == []
