"""metrics.jsonl: one JSON object per logged step, evaluation or probe.

The file grows line by line and is cut back to the checkpoint a run resumes from, so that the
metrics of a resumed run equal those of an unbroken one.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemmule import files
from gemmule.errors import CheckpointError
from gemmule.runs.layout import RunLayout


def append(path: Path, values: Mapping[str, Any]) -> None:
    """Appends one line; NaN and Inf become null.

    Raises:
        OutputError: when the disk refuses.
    """
    clean = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }
    with files.writing_to(path), path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(clean) + "\n")


def cut(path: Path, step: int) -> None:
    """Drops the lines after `step`, and a line that was only half written."""
    if path.exists():
        kept = [line for line in read(path, may_be_cut=True) if line["step"] <= step]
        files.write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def read(path: Path, *, may_be_cut: bool = False) -> list[dict[str, Any]]:
    """The lines of the file, in order.

    Args:
        path: the file.
        may_be_cut: leave out a last line without an end, which a killed process was writing.

    Raises:
        CheckpointError: when the file is not there, or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}: the run is not complete") from None
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable: {e}") from None
    values = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (may_be_cut and not line.endswith("\n")):
            continue
        try:
            value = json.loads(line)
        except ValueError:
            raise CheckpointError(f"{path}, line {number}: not JSON") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{path}, line {number}: not a JSON object")
        values.append(value)
    return values


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The metrics of the run in the folder `run`, which may be unfinished."""
    return read(RunLayout(run).metrics, may_be_cut=True)
