"""`gemmule memorization`: measures one model, or two on the same passages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule.console import counting
from gemmule.errors import DataError
from gemmule.evals.eval_target import EvalTarget, LoadOptions, open_target, results_folder
from gemmule.evals.memorization import summary
from gemmule.evals.memorization.extraction import RESULT, measure, read_samples
from gemmule.evals.memorization.settings import Settings
from gemmule.evals.training_data import Reading, TrainingData, open_training_data
from gemmule.runs.layout import QuickstartLayout, RunLayout
from gemmule.runs.lock import locked_output
from gemmule.runs.schema_evals import Memorization
from gemmule.runtime import memory


def run_memorization(
    model: str,
    settings: Settings,
    *,
    against: str | None = None,
    data: Path | None = None,
    out: Path | None = None,
    device: str = "cpu",
    fresh: bool = False,
) -> dict[str, Any]:
    """Measures how much of its training text a model reproduces, and how much more than another.

    Args:
        model: a run; or a quickstart's folder, whose distilled student is compared with the one
            trained from scratch; or with `data` any model.
        settings: which passages are drawn, and what counts as reproduced.
        against: another model to measure on the same passages.
        data: the data folder, if the run does not lead to it.
        out: folder of the results; None: the run's evals/.
        device: torch device.
        fresh: discard earlier measurements.

    Returns:
        The content of memorization.json.

    Raises:
        UserError: if models, text and settings do not match.
    """
    memory.keep_freed_memory()
    if against is None:
        model, against = students(model)
    training = open_training_data(model, data)
    other = None if against is None else _other(against, training)
    readings = [t.reading for t in (training, other) if t and t.reading]
    target = open_target(model, out=out, options=LoadOptions(device=device))
    result = _measure(target, training, settings, readings, fresh)
    if against is None or other is None:
        return result
    folder = (out or results_folder(model)) / "against" if out else results_folder(against)
    opponent = open_target(against, out=folder, options=LoadOptions(device=device))
    theirs = _measure(opponent, other, settings, readings, fresh)
    result["against"] = {
        "model": opponent.identity,
        **{key: theirs[key] for key in ("train", "control")},
        "difference": summary.differences(
            read_samples(target.folder), read_samples(opponent.folder)
        ),
    }
    Memorization.parse(result, RESULT).write(target.folder / RESULT)
    return result


def students(path: str) -> tuple[str, str | None]:
    """The two students of a quickstart's folder, distilled and from scratch; else `path` alone."""
    quickstart = QuickstartLayout(Path(path))
    student, scratch = quickstart.run("student"), quickstart.run("scratch")
    if RunLayout(quickstart.path).started or not student.started:
        return path, None
    return str(student.path), str(scratch.path) if scratch.model.is_dir() else None


def _measure(
    target: EvalTarget,
    training: TrainingData,
    settings: Settings,
    readings: Sequence[Reading],
    fresh: bool,
) -> dict[str, Any]:
    lock = locked_output(target.folder / RESULT)
    with lock, counting(f"memorization, {target.name}") as progress:
        return measure(
            target, training, settings, also_read_by=readings, fresh=fresh, progress=progress
        )


def _other(against: str, training: TrainingData) -> TrainingData:
    """The other model's training data, which must be the same."""
    other = open_training_data(against, training.dataset.path)
    if other.dataset.fingerprint != training.dataset.fingerprint:
        raise DataError(
            f"{against} was trained on other text ({other.dataset.name}) than "
            f"{training.dataset.name}: only models trained on the same text can be compared on the "
            "same passages"
        )
    return other
