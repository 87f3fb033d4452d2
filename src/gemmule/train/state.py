"""Training states: everything a run needs to go on bit for bit, as safetensors and JSON."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gemmule import files
from gemmule.errors import CheckpointError

_STEP = re.compile(r"step-(\d+)")
# What these optimisers keep of each parameter from their first step on.
_SLOTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}
# What reading a damaged state can come to, besides what the file system and safetensors say.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)


def save_training_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes checkpoints/step-N whole or not at all, then drops all but the newest `keep`.

    Args:
        folder: the run's checkpoints folder.
        step: N, the number of finished steps.
        model: whose parameters to save.
        optimizers: whose states to save.
        state: JSON-able rest (counters, the loader's position).
        keep: how many checkpoints to leave.

    Raises:
        OutputError: when the disk refuses.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    scalars: dict[str, Any] = {}
    for i, optimizer in enumerate(optimizers):
        for j, slots in optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                key = f"optimizer.{i}.{j}.{name}"
                if isinstance(value, Tensor):
                    tensors[key] = value
                else:
                    scalars[key] = value
    target = folder / f"step-{step}"
    with files.atomic_dir(target) as tmp:
        _save_tensors(tensors, tmp / "state.safetensors")
        text = json.dumps({"step": step, **state, "scalars": scalars}, indent=2)
        (tmp / "state.json").write_text(text, encoding="utf-8")
    drop_old_states(folder, keep)
    return target


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as e:  # safetensors wraps the system's refusal; find which it was
        match = re.search(r"os error (\d+)", str(e))
        raise OSError(int(match[1]) if match else 5, str(e)) from e


def drop_old_states(folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` step-N folders."""
    for old in training_states(folder)[:-keep]:
        with files.writing_to(old):
            shutil.rmtree(old)


def training_states(folder: Path) -> list[Path]:
    """The step-N folders of a checkpoints folder, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("step-*") if (m := _STEP.fullmatch(p.name))]
    return [p for _, p in sorted(found)]


def load_training_state(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Fills `model` and `optimizers` from one step-N folder.

    Returns:
        What was given as `state`, and "step".

    Raises:
        CheckpointError: when it is damaged or belongs to another model or optimiser.
    """
    weights: dict[str, Tensor] = {}
    slots: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    try:
        tensors = load_file(folder / "state.safetensors")
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for key, value in {**tensors, **state.pop("scalars")}.items():
            kind, _, rest = key.partition(".")
            if kind == "model":
                weights[rest] = value  # copied into the model's own memory
            else:
                i, j, name = rest.split(".")
                # A copy in memory of torch's own alignment, so that arithmetic repeats bit for bit.
                copied = value.clone() if isinstance(value, Tensor) else value
                slots[int(i)].setdefault(int(j), {})[name] = copied
    except (OSError, SafetensorError, *_BROKEN) as e:
        raise CheckpointError(
            f"cannot read the training state {folder} ({e}): delete that folder to go on from "
            "the one before, or start the run again"
        ) from None
    try:
        model.load_state_dict(weights)
        for optimizer, filled in zip(optimizers, slots, strict=True):
            _check_slots(optimizer, filled)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": filled})
    except _BROKEN as e:
        raise CheckpointError(
            f"the training state {folder} does not fit this run's model: {e}"
        ) from None
    return state


def _check_slots(optimizer: torch.optim.Optimizer, slots: Mapping[int, Mapping[str, Any]]) -> None:
    """Makes sure of what torch would only notice in the next step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, filled in slots.items():
        names = _SLOTS.get(type(optimizer).__name__, set(filled))
        if set(filled) != names:
            raise ValueError(f"it holds {sorted(filled)} where {sorted(names)} belong")
        for name, value in filled.items():
            of = parameters[i].shape
            if isinstance(value, Tensor) and value.ndim and value.shape != of:
                raise ValueError(f"{name} of shape {list(value.shape)} for {list(of)}")
