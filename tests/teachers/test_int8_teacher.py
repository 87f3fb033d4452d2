"""Recording a teacher whose linear layers are in int8."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmule.errors import ConfigError, OutputError
from gemmule.teachers.logit_store import Store
from gemmule.teachers.record import record
from gemmule.teachers.record_config import RecordConfig
from gemmule.teachers.verify_store import verify

pytestmark = pytest.mark.usefixtures("no_meter")


def config(prepared: Path, teacher: str, **changes: Any) -> RecordConfig:
    return RecordConfig.parse(
        {"teacher": teacher, "data": prepared, "seq_len": 24, "tokens": 240, "compile": False,
         "dtype": "float32", "threads": 1, "targets": {"kind": "top_k", "k": 300}, **changes}
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_close_to_the_teacher_and_said_in_the_manifest(
    kind: str,
    foreign: Callable[..., Path],
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(foreign(kind), tmp_path / "teacher")
    if kind == "gemma2":
        shutil.copy(prepared / "tokenizer" / "tokenizer.model", folder)
    settings = config(prepared, str(folder))
    record(settings, tmp_path / "exact")
    capsys.readouterr()
    record(settings.model_copy(update={"int8": True}), tmp_path / "int8")
    assert "int8" in capsys.readouterr().err
    exact, rounded = (Store.open(tmp_path / name) for name in ("exact", "int8"))
    assert rounded.manifest["teacher"]["linear_layers"] == "int8"
    assert "linear_layers" not in exact.manifest["teacher"]
    fingerprints = {s.manifest["teacher"]["fingerprint"] for s in (exact, rounded)}
    assert len(fingerprints) == 1
    entropies = [s.read(3).entropy_T for s in (exact, rounded)]
    off = np.abs(entropies[0] - entropies[1])
    assert 0 < off.max() < 0.3
    reports = [verify(tmp_path / name, tokens=96) for name in ("exact", "int8")]
    figures = [r["faithfulness"] for r in reports]
    assert figures[0]["total_variation"]["mean"] < 1e-4
    assert 1e-3 < figures[1]["total_variation"]["mean"] < 0.1
    assert [f["recorded_precision"] for f in figures] == ["float32", "int8"]
    with pytest.raises(OutputError, match="linear_layers: int8 there, None now"):
        record(settings, tmp_path / "int8")


def test_a_server_has_its_own_precision(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="int8 = true"):
        record(config(prepared, "http://127.0.0.1:9/v1", int8=True), tmp_path / "a")
