"""Measured runs, as the scaling law sees them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmule.errors import CheckpointError, ConfigError
from gemmule.plan.scaling import Point

PARTS = ("teacher", "scratch", "student", "scratch_equal_compute")  # of a quickstart


@dataclass(frozen=True)
class MeasuredRun:
    """A finished run.

    Attributes:
        name: its folder.
        point: what was trained on how much.
        loss: held out, nats per token.
        data: fingerprint of the corpus.
        tokenizer: fingerprint of the tokenizer.
    """

    name: str
    point: Point
    loss: float
    data: str
    tokenizer: str


def read_runs(folders: Sequence[Path], data: str | None) -> tuple[list[MeasuredRun], list[str]]:
    """The runs in `folders`; a quickstart's folder counts as its several runs.

    Args:
        folders: of runs.
        data: fingerprint of the planned corpus; None where there is none yet.

    Returns:
        The runs, and notes on those left out: a distilled one whose teacher's loss is not known.

    Raises:
        CheckpointError: for a folder that holds no finished run.
        ConfigError: when runs were measured on other text than one another or the plan.
    """
    found: list[MeasuredRun] = []
    notes: list[str] = []
    for folder in _runs_in(folders):
        run = _read(folder)
        if run is None:
            notes.append(f"{folder} is left out: its teacher's loss is not known")
        elif all(run.name != other.name for other in found):
            found.append(run)
    wanted = data or (found[0].data if found else None)
    for run in found:
        if run.data != wanted:
            against = "the planned corpus" if data else found[0].name
            raise ConfigError(
                f"{run.name} was measured on other text (fingerprint {run.data[:12]}) than "
                f"{against} ({str(wanted)[:12]}): nats per token of different texts cannot be "
                "compared; give runs of one corpus"
            )
    return found, notes


def held_out_loss(folder: str, data: str | None) -> float | None:
    """A run's held-out loss; None for a folder that is no run, or one of other text than `data`."""
    result, manifest = Path(folder) / "result.json", Path(folder) / "manifest.json"
    if not (result.is_file() and manifest.is_file()):
        return None
    if data is not None and _json(manifest).get("data", {}).get("fingerprint") != data:
        return None
    return float(_json(result)["nats_per_token"])


def _runs_in(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        if not folder.is_dir():
            raise CheckpointError(f"no folder {folder}: --runs takes folders of finished runs")
        if (folder / "comparison.json").is_file():
            yield from (folder / part for part in PARTS if (folder / part).is_dir())
        else:
            yield folder


def _read(folder: Path) -> MeasuredRun | None:
    if not (folder / "result.json").is_file() or not (folder / "manifest.json").is_file():
        raise CheckpointError(
            f"{folder} holds no finished run (no result.json and manifest.json): resume it first, "
            "or leave it out"
        )
    result, manifest = _json(folder / "result.json"), _json(folder / "manifest.json")
    try:
        loss, tokens = float(result["nats_per_token"]), float(result["train_tokens"])
        parameters = float(manifest["non_embedding_parameters"])
        data, tokenizer = str(manifest["data"]["fingerprint"]), str(manifest["tokenizer"])
        teacher = None
        if manifest["kind"] == "distill":
            teacher = _loss_of_parent(folder, manifest)
            if teacher is None:
                return None
    except (KeyError, TypeError, ValueError) as e:
        raise CheckpointError(f"{folder}: result.json or manifest.json lacks {e}") from None
    return MeasuredRun(str(folder), Point(parameters, tokens, teacher), loss, data, tokenizer)


def _loss_of_parent(folder: Path, manifest: Mapping[str, Any]) -> float | None:
    """From the teacher's own result: where it was, or beside the run if both were moved."""
    parent = manifest.get("parent") or manifest.get("teacher") or {}
    if "path" not in parent:
        return None
    path = Path(parent["path"])
    for candidate in (folder.parent / path.name, path):
        found = candidate / "result.json"
        if found.is_file():
            return float(_json(found)["nats_per_token"])
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{path} is not readable JSON: {e}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not readable: expected a JSON object")
    return value
