"""Reading measured runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import CheckpointError, ConfigError
from gemmule.plan.measured_runs import held_out_loss, read_runs


def write(folder: Path, loss: float, parent: str | None = None, data: str = "aa" * 32) -> Path:
    folder.mkdir(parents=True)
    manifest: dict[str, Any] = {
        "kind": "distill" if parent else "train", "non_embedding_parameters": 1000,
        "data": {"fingerprint": data}, "tokenizer": "bb", "parent": parent and {"path": parent},
        "model": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    result = {
        "nats_per_token": loss, "train_tokens": 5000, "perplexity": 1.0, "bits_per_byte": 1.0,
        "parameters": 2000,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    root = tmp_path / "quickstart"
    write(root / "teacher", 3.0)
    write(root / "scratch", 4.0)
    write(root / "student", 3.5, "somewhere/else/teacher")
    write(root / "scratch_equal_compute", 3.6)
    (root / "comparison.json").write_text("{}")
    return root


def test_a_quickstart_is_several_runs(quickstart: Path) -> None:
    runs, notes = read_runs([quickstart], None)
    assert notes == []
    assert [(Path(r.name).name, r.loss, r.point.teacher_loss) for r in runs] == [
        ("teacher", 3.0, None),
        ("scratch", 4.0, None),
        ("student", 3.5, 3.0),
        ("scratch_equal_compute", 3.6, None),
    ]
    assert {(r.point.parameters, r.point.tokens) for r in runs} == {(1000.0, 5000.0)}


def test_a_run_given_twice_counts_once(quickstart: Path) -> None:
    runs, _ = read_runs([quickstart, quickstart / "scratch"], None)
    assert len(runs) == 4


def test_a_student_of_an_unknown_teacher_is_left_out(tmp_path: Path) -> None:
    runs, notes = read_runs([write(tmp_path / "student", 3.5, "runs/gone")], None)
    assert runs == []
    assert notes == [f"{tmp_path / 'student'} is left out: its teacher's loss is not known"]


def test_runs_on_other_text_are_refused(quickstart: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", 2.0, data="cc" * 32)
    with pytest.raises(ConfigError, match="other was measured on other text"):
        read_runs([quickstart, other], None)
    with pytest.raises(ConfigError, match="than the planned corpus"):
        read_runs([other], "aa" * 32)


def test_what_is_no_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*missing"):
        read_runs([tmp_path / "missing"], None)
    run = write(tmp_path / "run", 3.0)
    result = json.loads((run / "result.json").read_text())
    del result["train_tokens"]
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(CheckpointError, match=r"result\.json: train_tokens is missing"):
        read_runs([run], None)
    (run / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        read_runs([run], None)
    (run / "result.json").unlink()
    with pytest.raises(CheckpointError, match=r"does not hold a finished run .*resume it first"):
        read_runs([run], None)


def test_a_manifest_that_lacks_what_is_needed(tmp_path: Path) -> None:
    run = write(tmp_path / "run", 3.0)
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["tokenizer"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json lacks .*tokenizer"):
        read_runs([run], None)


def test_a_teacher_s_loss_is_of_the_same_text(quickstart: Path, tmp_path: Path) -> None:
    teacher = str(quickstart / "teacher")
    assert held_out_loss(teacher, None) == held_out_loss(teacher, "aa" * 32) == 3.0
    assert held_out_loss(teacher, "cc" * 32) is None
    assert held_out_loss(str(tmp_path), None) is None
