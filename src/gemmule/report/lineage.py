"""The card's lineage: from the base through each stage of post-training to the model itself.

A run names the model that it started from (runs/lineage.py); where that is a run that is still
there, its files are read in turn. Each stage shows its data, its cost, and whether its gates let
it replace the stage before.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemmule.report import values
from gemmule.report.run_files import Document, Run, is_number, load_run
from gemmule.report.values import Provenance, Sentence, sentence, without_folders
from gemmule.runs.layout import RunLayout
from gemmule.runs.lineage import start_of

_TITLES = {
    "train": "Pretraining",
    "distill": "Distillation",
    "sft": "Supervised fine-tuning",
    "opd": "On-policy distillation",
    "reward": "Reward model",
    "merge": "Merge",
}
_METHODS = {
    "dpo": "DPO", "ipo": "IPO", "simpo": "SimPO", "kto": "KTO", "rloo": "RLOO", "grpo": "GRPO",
    "jbond": "J-BOND", "average": "Average", "lerp": "LERP", "slerp": "SLERP",
}  # fmt: skip
_MOST = 32  # stages; a chain that is longer leads in a circle


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a lineage.

    Attributes:
        title: what was done.
        name: the run's name, or what the next stage calls it.
        data: what it learned from.
        cost: tokens, time and energy.
        verdict: what its gates decided; empty without gates.
        checks: each rule of the gates: whether it holds, its name, rule and outcome.
        notes: teachers, merged models, and what could not be read.
    """

    title: str
    name: str
    data: Sentence
    cost: Sentence
    verdict: Sentence
    checks: Sequence[tuple[bool, str, str, str]]
    notes: Sequence[Sentence]


def title_of(run: Run) -> str:
    """What a run did, in words."""
    kind, method = str(run.manifest.get("kind")), None
    if run.config is not None:
        method = run.config.get("objective.method")
    if kind == "merge":
        method = run.manifest.get("objective.method")
    return _METHODS.get(str(method), _TITLES.get(kind, kind))


def stages(root: Path, model: Run, provenance: Provenance) -> list[Stage]:
    """The stages of a model, the base first; none if it started from random weights.

    Args:
        root: the folder the card is for.
        model: the run whose lineage it is.
        provenance: values of the card, to which those of the lineage are added.

    Raises:
        CheckpointError: when a file of an earlier run is broken.
    """
    folder = root / model.folder
    chain: list[tuple[str, Run | None]] = [(folder.resolve().name, model)]
    seen, start = {folder.resolve()}, start_of(folder)
    while start is not None and len(chain) < _MOST:
        earlier = _run_at(start, folder)
        if earlier is None or earlier.resolve() in seen:
            chain.append((without_folders(start), None))
            break
        seen.add(earlier.resolve())
        chain.append((earlier.resolve().name, _read(earlier, root)))
        folder, start = earlier, start_of(earlier)
    if len(chain) == 1 and model.gates is None:
        return []
    return [_stage(name, run, root, provenance) for name, run in reversed(chain)]


def _run_at(name: str, next_to: Path) -> Path | None:
    """The finished run that a run names, if it is still there.

    A relative path counts from where the run was started, which may not be the current folder: then
    from the folders that the run is in.
    """
    path = Path(name)
    places = [path] if path.is_absolute() else [path, *(p / path for p in next_to.parents)]
    return next((p for p in places if RunLayout(p).started and RunLayout(p).finished), None)


def _read(folder: Path, root: Path) -> Run:
    """A run outside of the card's folder; its files are named relative to that."""
    run = load_run(folder, "")
    near = Path(os.path.relpath(folder.resolve(), root.resolve()))
    shown = near.as_posix() if near.parts.count("..") < 3 else f"…/{folder.resolve().name}"
    changes: dict[str, Any] = {"folder": shown}
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if isinstance(value, Document):
            changes[field.name] = Document(f"{shown}/{value.file}", value.content)
    return dataclasses.replace(run, **changes)


def _stage(name: str, run: Run | None, root: Path, provenance: Provenance) -> Stage:
    if run is None:
        note = sentence("Its files are not here: it is known by its name only.")
        return Stage("Start", name, [], [], [], [], [note])
    title = title_of(run)
    notes = _merged(run, root, provenance) if run.manifest.get("kind") == "merge" else []
    if not notes:
        notes = _teachers(run)
    verdict, checks = _gates(run, title, provenance)
    return Stage(
        title,
        name,
        _data(run, title, provenance),
        _cost(run, title, provenance),
        verdict,
        checks,
        notes,
    )


def _data(run: Run, title: str, provenance: Provenance) -> Sentence:
    if run.manifest.get("data.name") is None:
        return []
    name = provenance.take(run.manifest, "data.name", f"{title}: data", str)
    if run.manifest.get("data.documents") is None:
        return [name]
    label = f"{title}: documents"
    return sentence(
        "{}, {} documents",
        name,
        provenance.take(run.manifest, "data.documents", label, values.exact),
    )


def _cost(run: Run, title: str, provenance: Provenance) -> Sentence:
    parts: list[Sentence] = []
    for document, key, what, form in (
        (run.result, "train_tokens", "tokens", values.count),
        (run.result, "seconds", "time", values.duration),
        (run.result, "energy_wh", "energy", values.watt_hours),
        (run.result, "gco2e", "carbon", values.grams),
    ):
        if is_number(document.get(key)) and (document.get(key) or key != "train_tokens"):
            value = provenance.take(document, key, f"{title}: {what}", form)
            parts.append(sentence("{} tokens", value) if what == "tokens" else [value])
    joined: Sentence = []
    for part in parts:
        joined += ([", "] if joined else []) + part
    return joined


def _gates(
    run: Run, title: str, provenance: Provenance
) -> tuple[Sentence, list[tuple[bool, str, str, str]]]:
    gates = run.gates
    if gates is None:
        return [], []
    parent = without_folders(str(gates.get("parent.path")))
    decision = "Promoted" if gates.get("passed") else "Refused"
    then = f"it {'may' if gates.get('passed') else 'does not'} replace {parent}."
    verdict = sentence(f"{decision}: {then}")
    count = gates.get("prompts.count")
    if count is not None:
        value = provenance.take(
            gates, "prompts.count", f"{title}: prompts of its gates", values.exact
        )
        verdict = sentence(f"{decision} on {{}} held-out prompts: {then}", value)
    missing = gates.get("not_checked") or []
    if missing:
        verdict += [f" Not checked: {', '.join(map(str, missing))}."]
    checks = [
        (bool(c["passed"]), str(c["name"]), str(c["rule"]), str(c["outcome"]))
        for c in gates.get("checks")
    ]
    return verdict, checks


def _teachers(run: Run) -> list[Sentence]:
    """Models that a run learned from and did not start from."""
    start = run.config.get("model.init") if run.config is not None else None
    parents = run.manifest.get("parents") or [run.manifest.get("parent")]
    paths = [p.get("path") for p in parents if p is not None and p.get("path") != start]
    return [sentence(f"Teacher: {without_folders(str(path))}.") for path in paths if path]


def _merged(run: Run, root: Path, provenance: Provenance) -> list[Sentence]:
    """The models of a merge with what each cost, and the angles between what they learned."""
    notes: list[Sentence] = []
    own = root / run.folder
    for parent in run.manifest.get("parents") or []:
        if parent.get("role") == "base" or not parent.get("path"):
            continue
        path = str(parent["path"])
        place = _run_at(path, own)
        if place is None:
            notes.append(sentence(f"Model: {without_folders(path)}, not here."))
            continue
        model = _read(place, root)
        title = title_of(model)
        cost = _cost(model, f"{title}, {model.folder}", provenance)
        notes.append(sentence(f"Model: {place.resolve().name} ({title}): {{}}.", cost or ["…"]))
    layers = run.result.get("layers")
    angles = [
        angle
        for layer in (layers.values() if isinstance(layers, dict) else ())
        for i, row in enumerate(layer.get("angles", ()))
        for angle in row[:i]
        if angle is not None
    ]
    if angles:
        ends = [
            provenance.derived(
                run.result, f"{name} of layers.*.angles", end, f"merge: {name} angle", _degrees
            )
            for name, end in (("smallest", min(angles)), ("largest", max(angles)))
        ]
        notes.append(sentence("Angles between task vectors, by layer: {} to {}.", *ends))
    return notes


def _degrees(value: Any) -> str:
    return f"{value:.1f}°"
