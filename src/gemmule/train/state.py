"""Training states: everything a run needs to resume bit for bit.

A `StateStore` keeps the states of one run. `SafetensorsStates` writes each into a folder of its
own, step-N: state.safetensors with all tensors, state.json with the rest. Weights and optimizer
states are keyed by the name of their parameter ("model.norm.weight", "optimizer.norm.weight.step"),
so that they can be read by any number of ranks and by optimizers that divide the parameters up in
another way. Frozen parameters are left out: a resumed run gets them with its model. States of the
first format, keyed by the number of optimizer and parameter, are read too.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gemmule import files
from gemmule.errors import CheckpointError
from gemmule.runtime.world import SOLO, World

FORMAT = 2  # of state.json; the first format had no number
_FURTHER = "further"  # beginning of the keys of tensors that are neither weights nor optimizer's
_STEP = re.compile(r"step-(\d+)")
# What these optimizers keep for each parameter from their first step on.
_SLOTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}
# Exceptions that reading a damaged state raises, besides the file system's and safetensors'.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, RuntimeError)

Optimizers = Sequence[torch.optim.Optimizer]
NOTHING: Mapping[str, Tensor] = {}


class StateStore(Protocol):
    """The training states of one run. In a world of several ranks every rank calls each method."""

    def steps(self) -> list[int]:
        """The steps of which a state is kept, in ascending order."""

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> None:
        """Saves a state whole or not at all, then drops the oldest ones beyond the limit.

        The state that `values` name as the best one (values["best"]["step"]) is kept besides.

        Args:
            step: number of finished steps.
            model: its parameters are saved, without frozen ones.
            optimizers: their states are saved; every parameter belongs to one of them at most.
            values: other values to resume from (counters, the source's position), as JSON.
            tensors: further tensors that change with the steps, by name.

        Raises:
            OutputError: when the disk refuses.
        """

    def load(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> dict[str, Any]:
        """Fills `model`, `optimizers` and further tensors, in place, from the state of a step.

        Returns:
            The `values` it was saved with.

        Raises:
            CheckpointError: when it is damaged or belongs to another model or optimizer.
        """

    def clean(self) -> None:
        """Drops the oldest states beyond the limit, and what a killed process left unfinished."""


class SafetensorsStates:
    """A folder of states, one subfolder step-N each, written by the first rank.

    Args:
        folder: made with the first state.
        keep: how many states to keep.
        world: the ranks, each of which holds all parameters.
    """

    def __init__(self, folder: Path, keep: int, world: World = SOLO) -> None:
        self.folder, self.keep, self.world = folder, keep, world

    def path(self, step: int) -> Path:
        """The folder of one state."""
        return self.folder / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps of which a state is kept, in ascending order."""
        matches = (_STEP.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(match[1]) for match in matches if match)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        values: Mapping[str, Any],
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> None:
        """Saves a state whole or not at all, then drops the oldest ones beyond the limit."""
        if self.world.first:
            weights, frozen = model.state_dict().items(), _frozen(model)
            saved = {f"model.{name}": tensor for name, tensor in weights if name not in frozen}
            saved.update((f"{_FURTHER}.{name}", tensor) for name, tensor in tensors.items())
            scalars: dict[str, Any] = {}
            for name, slots in _optimizer_states(model, optimizers):
                for slot, value in slots.items():
                    target = saved if isinstance(value, Tensor) else scalars
                    target[f"optimizer.{name}.{slot}"] = value
            with files.atomic_dir(self.path(step)) as tmp:
                _save_tensors(saved, tmp / "state.safetensors")
                state = {"step": step, **values, "format": FORMAT, "scalars": scalars}
                (tmp / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
            self._drop_old()
        self.world.barrier()

    def load(
        self,
        step: int,
        model: nn.Module,
        optimizers: Optimizers,
        tensors: Mapping[str, Tensor] = NOTHING,
    ) -> dict[str, Any]:
        """Fills everything from the state of a step, in place; returns its values."""
        folder = self.path(step)
        try:
            saved = load_file(folder / "state.safetensors")
            state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            further = {k: saved.pop(k) for k in list(saved) if k.startswith(f"{_FURTHER}.")}
            weights, slots = _by_name({**saved, **state.pop("scalars")})
            if state.pop("format", 1) == 1:
                slots = _names_for_numbers(slots, model, optimizers)
            if state.pop("step") != step:
                raise ValueError(f"it is not the state of step {step}")
        except (OSError, SafetensorError, *_BROKEN) as e:
            raise CheckpointError(
                f"cannot read the training state {folder} ({e}): delete that folder to resume from "
                "the one before, or start the run again"
            ) from None
        try:
            _load_weights(model, weights)
            _fill(model, optimizers, slots)
            _restore(tensors, further)
        except _BROKEN as e:
            raise CheckpointError(
                f"the training state {folder} does not fit this run's model: {e}"
            ) from None
        return state

    def clean(self) -> None:
        """Drops the oldest states beyond the limit, and what a killed process left unfinished."""
        if self.world.first:
            files.remove_leftovers(self.folder)
            self._drop_old()
        self.world.barrier()

    def _drop_old(self) -> None:
        for step in self.steps()[: -self.keep]:
            if step == self._best():
                continue
            old = self.path(step)
            with files.writing_to(old):
                shutil.rmtree(old)

    def _best(self) -> int | None:
        """The step that the newest state names as the best; None if it names none."""
        try:
            path = self.path(self.steps()[-1]) / "state.json"
            best = json.loads(path.read_text(encoding="utf-8")).get("best")
            return None if best is None else int(best["step"])
        except (OSError, *_BROKEN):
            return None  # loading it says what is wrong


def _frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fills the model's trained parameters; its frozen ones stay.

    Raises:
        RuntimeError: when the weights are not exactly those.
    """
    current, frozen = model.state_dict(), _frozen(model)
    if unused := frozen & weights.keys():
        raise RuntimeError(f"it holds {min(unused)}, which is not trained")
    model.load_state_dict({**{name: current[name] for name in frozen}, **weights})


def _optimizer_states(
    model: nn.Module, optimizers: Optimizers
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name of each parameter that has an optimizer state, and that state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in _parameters(optimizer):
            if parameter in optimizer.state:
                yield names[parameter], optimizer.state[parameter]


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as e:  # it wraps the system's refusal; find which it was
        match = re.search(r"os error (\d+)", str(e))
        raise OSError(int(match[1]) if match else 5, str(e)) from e


def _by_name(
    values: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Weights by parameter, and optimizer states by parameter and slot."""
    weights: dict[str, Tensor] = {}
    slots: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        kind, _, rest = key.partition(".")
        if kind == "model":
            weights[rest] = value  # copied into the model's own memory
            continue
        name, _, slot = rest.rpartition(".")
        if kind != "optimizer" or not name:
            raise ValueError(f"unknown entry {key!r}")
        # A copy in memory of torch's own alignment, so that arithmetic repeats bit for bit.
        copied = value.clone() if isinstance(value, Tensor) else value
        slots.setdefault(name, {})[slot] = copied
    return weights, slots


def _names_for_numbers(
    slots: Mapping[str, dict[str, Any]], model: nn.Module, optimizers: Optimizers
) -> dict[str, dict[str, Any]]:
    """States of the first format, keyed "optimizer.parameter" by number, keyed by name."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_number = {
        f"{i}.{j}": names[parameter]
        for i, optimizer in enumerate(optimizers)
        for j, parameter in enumerate(_parameters(optimizer))
    }
    return {by_number[number]: state for number, state in slots.items()}


def _fill(model: nn.Module, optimizers: Optimizers, slots: Mapping[str, Mapping[str, Any]]) -> None:
    """Gives every optimizer the states of its parameters.

    Raises:
        ValueError: for a state that does not fit its parameter, or belongs to none.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    used = set()
    for optimizer in optimizers:
        filled = {}
        for i, parameter in enumerate(_parameters(optimizer)):
            name = names[parameter]
            if name in slots:
                _check(optimizer, name, parameter, slots[name])
                filled[i] = slots[name]
                used.add(name)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": filled})
    if unused := sorted(set(slots) - used):
        raise ValueError(f"it holds an optimizer state of {unused[0]!r}, which is not trained")


@torch.no_grad()
def _restore(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copies saved tensors into those of this run.

    Raises:
        ValueError: unless the names and shapes are the same.
    """
    names = {f"{_FURTHER}.{name}" for name in tensors}
    if names != set(saved):
        raise ValueError(f"it lacks, or has beyond this run's, {sorted(names ^ set(saved))[0]!r}")
    for name, tensor in tensors.items():
        value = saved[f"{_FURTHER}.{name}"]
        if value.shape != tensor.shape:
            raise ValueError(f"{name} of shape {list(value.shape)} for {list(tensor.shape)}")
        tensor.copy_(value)


def _check(
    optimizer: torch.optim.Optimizer,
    name: str,
    parameter: nn.Parameter,
    slots: Mapping[str, Any],
) -> None:
    """Finds what torch would notice only in the next step."""
    expected = _SLOTS.get(type(optimizer).__name__, set(slots))
    if set(slots) != expected:
        raise ValueError(f"it holds {sorted(slots)} of {name} where {sorted(expected)} belong")
    for slot, value in slots.items():
        if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
            raise ValueError(
                f"{slot} of shape {list(value.shape)} for {name} of {list(parameter.shape)}"
            )
