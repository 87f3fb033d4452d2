"""Measured runs, as the scaling law sees them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemmule.errors import CheckpointError, ConfigError
from gemmule.plan.scaling import LawPoint
from gemmule.runs.layout import RunLayout, runs_in
from gemmule.runs.schema import Manifest, Result


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run.

    Attributes:
        name: folder of the run.
        point: size of the model and number of training tokens.
        loss: held-out loss, nats per token.
        data: fingerprint of the corpus.
        tokenizer: fingerprint of the tokenizer.
    """

    name: str
    point: LawPoint
    loss: float
    data: str
    tokenizer: str


def read_runs(folders: Sequence[Path], data: str | None) -> tuple[list[MeasuredRun], list[str]]:
    """The runs in `folders`; the folder of a quickstart counts as its several runs.

    Args:
        folders: folders of runs.
        data: fingerprint of the planned corpus; None where there is none yet.

    Returns:
        The runs, and notes on those left out: a distilled one whose teacher's loss is not known.

    Raises:
        CheckpointError: for a folder that does not hold a finished run.
        ConfigError: when runs were measured on other text than one another or the plan.
    """
    runs: list[MeasuredRun] = []
    notes: list[str] = []
    for layout in _layouts(folders):
        run = _read(layout)
        if run is None:
            notes.append(f"{layout.path} is left out: its teacher's loss is not known")
        elif all(run.name != other.name for other in runs):
            runs.append(run)
    expected = data or (runs[0].data if runs else None)
    for run in runs:
        if run.data != expected:
            against = "the planned corpus" if data else runs[0].name
            raise ConfigError(
                f"{run.name} was measured on other text (fingerprint {run.data[:12]}) than "
                f"{against} ({str(expected)[:12]}): nats per token of different texts cannot be "
                "compared; give runs of one corpus"
            )
    return runs, notes


def held_out_loss(folder: str, data: str | None) -> float | None:
    """A run's held-out loss; None for another folder, or a run on other text than `data`."""
    run = RunLayout(Path(folder))
    if not (run.finished and run.started):
        return None
    if data is not None and Manifest.read(run.manifest).data.fingerprint != data:
        return None
    return float(Result.read(run.result).nats_per_token)


def _layouts(folders: Sequence[Path]) -> Iterator[RunLayout]:
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"no folder {folder}: --runs takes folders of finished runs")
        yield from runs_in(folder)


def _read(run: RunLayout) -> MeasuredRun | None:
    if not (run.finished and run.started):
        raise CheckpointError(
            f"{run.path} does not hold a finished run (no {run.result.name} and "
            f"{run.manifest.name}): resume it first, or leave it out"
        )
    result, manifest = Result.read(run.result), Manifest.read(run.manifest)
    parameters, tokenizer = manifest.non_embedding_parameters, manifest.tokenizer
    data = manifest.data.fingerprint
    if parameters is None or tokenizer is None or data is None:
        raise CheckpointError(
            f"{run.manifest} lacks non_embedding_parameters, tokenizer or data.fingerprint: leave "
            "this run out"
        )
    teacher = None
    if manifest.distilled:
        teacher = _loss_of_parent(run, manifest)
        if teacher is None:
            return None
    point = LawPoint(float(parameters), float(result.train_tokens), teacher)
    return MeasuredRun(str(run.path), point, float(result.nats_per_token), data, tokenizer)


def _loss_of_parent(run: RunLayout, manifest: Manifest) -> float | None:
    """The teacher's loss from its own result: where it was, or next to the run if both moved."""
    parent = manifest.parent or manifest.teacher
    if parent is None or parent.path is None:
        return None
    path = Path(parent.path)
    for teacher in (RunLayout(run.path.parent / path.name), RunLayout(path)):
        if teacher.finished:
            return float(Result.read(teacher.result).nats_per_token)
    return None
