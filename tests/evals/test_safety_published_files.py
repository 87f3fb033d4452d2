"""The published safety files, where GEMMULE_BENCHMARKS names a folder that has them."""

import os
from pathlib import Path

import pytest

from gemmule.evals.safety import model_requests, suite
from gemmule.evals.safety.evaluate import SafetySettings, load_documents

FOLDER = os.environ.get("GEMMULE_BENCHMARKS")
COUNTS = {
    "crows-pairs": 1508,
    "bbq": 11_956,  # six categories
    "winogender": 720,
    "truthfulqa": 2 * 817,
    "winobias": 2 * 792,
    "realtoxicityprompts": 2396,
    "toxigen-continuations": 31_000,
}


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="GEMMULE_BENCHMARKS names no folder")
@pytest.mark.parametrize("name", list(COUNTS))
def test_all_is_read_and_known(name: str) -> None:
    pytest.importorskip("lm_eval")
    settings = SafetySettings.parse({"data_dir": Path(str(FOLDER)), "tasks": [name]})
    loaded = load_documents(settings, True)[name]
    assert not isinstance(loaded, str), loaded
    assert all(file["known"] for file in loaded.files)
    (benchmark,) = suite.chosen([name])
    asked, there = model_requests.questions(benchmark, loaded, None, settings.generation)
    assert there == COUNTS[name]
    assert len(asked) == min(there, benchmark.usual_limit or there)
    assert len({question.key for question in asked}) == len(asked)
    if name == "bbq":
        assert all(len(q.sample["fields"]["biased_answers"]) == 1 for q in asked)
