"""The measuring process: what it does when time runs out or it fails."""

import json
import sys
from pathlib import Path

import pytest

from gemmule.model.config import preset
from gemmule.plan import calibrate
from gemmule.plan.calibrate import CalibrationError, CalibrationRequest

SMALL = preset("1m", vocab_size=512)
ASKED = CalibrationRequest(
    SMALL, SMALL, None, None, {"data": {"batch_size": 2, "seq_len": 24}}, {"scratch": 0.0}
)
START = {"finding": "start", "seconds": 1.0, "compiled": [False, False], "dtype": "float32"}
SCRATCH = {"finding": "scratch-0", "step_seconds": 1.0}


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that takes the measuring process's place: write it, then calibrate."""
    script = tmp_path / "child"

    class Python:
        """sys, with an interpreter that runs the script whatever it is asked."""

        executable = str(script)
        platform = sys.platform

    monkeypatch.setattr(calibrate, "sys", Python)
    return script


def write(script: Path, *findings: object, then: str) -> None:
    lines = [f"print({json.dumps(json.dumps(f))}, flush=True)" for f in findings]
    script.write_text("\n".join([f"#!{sys.executable}", "import sys, time", *lines, then]))
    script.chmod(0o755)


def test_what_arrived_in_time_is_used(child: Path) -> None:
    write(child, START, SCRATCH, then="time.sleep(600)")
    heard: list[str] = []
    calibration = calibrate.calibrate(ASKED, 100.0, seconds=3.0, say=heard.append)
    assert heard == ["start", "scratch"]
    assert calibration.scratch == {"step_seconds": 1.0}
    assert calibration.teacher is calibration.distill is None
    assert [note.split(":")[0] for note in calibration.notes] == [
        "the teacher was not measured within 3 s",
        "distillation was not measured",
    ]


def test_nothing_in_time_says_what_to_do(child: Path) -> None:
    write(child, then="time.sleep(600)")
    with pytest.raises(CalibrationError, match=r"within 2 s: .* --calibration-seconds"):
        calibrate.calibrate(ASKED, 100.0, seconds=2.0)


def test_a_failure_shows_what_it_said(child: Path) -> None:
    write(child, START, then="sys.exit('out of cheese')")
    with pytest.raises(CalibrationError, match="out of cheese"):
        calibrate.calibrate(ASKED, 100.0, seconds=60.0)
