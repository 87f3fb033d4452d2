"""Little text in a plan: measured on it, measured near it, or not known."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemmule.model.config import preset
from gemmule.plan import scarce_text as module
from gemmule.plan.scarce_text import scarce_text

TEACHER, STUDENT = (preset(name, vocab_size=4096) for name in ("3m", "1m"))


def row(tokens: int, gain: float) -> dict[str, Any]:
    best = {"nats_per_token": 5.0, "epochs": 4, "schedule_epochs": 8}
    return {
        "tokens": tokens, "scratch": best, "distilled": best,
        "better_by": {"mean": gain, "half_width": 0.1, "n": 3},
    }  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of 100 and 400 tokens, whatever the file holds."""
    content = {
        "text": "a text",
        "teacher": {"non_embedding_parameters": TEACHER.non_embedding_parameters},
        "student": {"non_embedding_parameters": STUDENT.non_embedding_parameters},
        "rows": [row(400, 0.2), row(100, 0.4)],
    }
    monkeypatch.setattr(module, "measured", lambda: content)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(49, []), (50, [100]), (100, [100, 400]), (200, [100, 400]), (800, [400]), (801, [])],
)
@pytest.mark.usefixtures("measured")
def test_measurements_near_the_corpus(tokens: int, expected: list[int]) -> None:
    answer = scarce_text(tokens, "x", TEACHER, STUDENT, ())
    assert [r["tokens"] for r in answer["rows"]] == expected
    if expected:
        assert "measured on another text" in answer["verdict"]
        assert all(r["text"] == "a text" and not r["same_text"] for r in answer["rows"])
    else:
        assert f"not known for {tokens:,} tokens" in answer["verdict"]
        assert "gemmule quickstart --data" in answer["verdict"]


@pytest.mark.usefixtures("measured")
def test_other_sizes_are_not_known() -> None:
    larger = preset("10m", vocab_size=4096)
    for teacher, student in ((larger, STUDENT), (TEACHER, larger)):
        answer = scarce_text(200, "x", teacher, student, ())
        assert answer["rows"] == []
        assert "not known for 200 tokens and models of these sizes" in answer["verdict"]
    assert "not known without --data" in scarce_text(0, None, TEACHER, STUDENT, ())["verdict"]


def test_committed_measurements_are_complete() -> None:
    content = module.measured()
    assert content["student"]["non_embedding_parameters"] == STUDENT.non_embedding_parameters
    assert content["teacher"]["non_embedding_parameters"] == TEACHER.non_embedding_parameters
    for measured in content["rows"]:
        assert measured["better_by"]["n"] == len(measured["by_seed"]) >= 3
        for way in ("scratch", "distilled"):
            assert measured[way]["epochs"] <= measured[way]["schedule_epochs"]


def quickstart(folder: Path, fingerprint: str) -> Path:
    result = {
        "nats_per_token": 4.5, "perplexity": 90.0, "bits_per_byte": 2.0, "train_tokens": 8 * 640,
        "parameters": STUDENT.parameters, "epochs": 6, "schedule_epochs": 8,
    }  # fmt: skip
    pair = {"scratch": result, "distilled": {**result, "nats_per_token": 4.75}}
    scarce = {
        **pair, "text": {"tokens": 640, "bytes": 2000}, "recording": {"flops": 1.0},
        "students_of_teacher": 2,
    }  # fmt: skip
    (folder / "student").mkdir(parents=True)
    manifest = {
        "kind": "distill",
        "model": {},
        "data": {"name": "mine", "fingerprint": fingerprint},
    }
    (folder / "student" / "manifest.json").write_text(json.dumps(manifest))
    comparison = {"equal_tokens": pair, "equal_compute": pair, "scarce_text": scarce}
    (folder / "comparison.json").write_text(json.dumps(comparison))
    return folder


@pytest.mark.usefixtures("measured")
def test_a_quickstart_on_the_same_text_comes_first(tmp_path: Path) -> None:
    run = quickstart(tmp_path / "q", "same")
    answer = scarce_text(200, "same", TEACHER, STUDENT, (run, tmp_path))
    (only,) = answer["rows"]
    assert (only["text"], only["tokens"], only["same_text"]) == ("mine", 640, True)
    assert only["scratch"] == {"nats_per_token": 4.5, "epochs": 6, "schedule_epochs": 8}
    assert only["better_by"] == {"mean": -0.25, "half_width": None, "n": 1}
    words = "of 640 tokens the distilled student is 0.25 nats/token behind scratch"
    assert words in answer["verdict"]
    other = scarce_text(200, "other", TEACHER, STUDENT, (run,))
    assert [r["tokens"] for r in other["rows"]] == [100, 400]
    larger = preset("10m", vocab_size=4096)
    assert scarce_text(200, "same", TEACHER, larger, (run,))["rows"] == []
    comparison = json.loads((run / "comparison.json").read_text())
    del comparison["scarce_text"]  # of an earlier version
    (run / "comparison.json").write_text(json.dumps(comparison))
    assert [r["tokens"] for r in scarce_text(200, "same", TEACHER, STUDENT, (run,))["rows"]] == [
        100, 400,
    ]  # fmt: skip
