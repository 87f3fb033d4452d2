"""What a training state holds, by name: collected from a model and its optimizers, and put back.

Keys of tensors: "model.norm.weight" for weights, "optimizer.norm.weight.step" for what an optimizer
keeps of a parameter, "further.name" for anything else that changes with the steps. They say nothing
of numbers of optimizers, parameters or ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

FURTHER = "further"  # beginning of the keys of tensors that are neither weights nor optimizer's
# What these optimizers keep for each parameter from their first step on.
_SLOTS = {"AdamW": {"step", "exp_avg", "exp_avg_sq"}, "Muon": {"momentum_buffer"}}

Optimizers = Sequence[torch.optim.Optimizer]


def collect(
    model: nn.Module, optimizers: Optimizers, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a state by key, and of what optimizers keep the numbers, which go into JSON.

    Frozen parameters are left out.

    Args:
        model: its parameters and buffers.
        optimizers: every parameter belongs to one of them at most.
        tensors: further tensors by name.
    """
    frozen = _frozen(model)
    saved = {f"model.{k}": v for k, v in model.state_dict().items() if k not in frozen}
    saved.update((f"{FURTHER}.{name}", tensor) for name, tensor in tensors.items())
    scalars: dict[str, Any] = {}
    for name, slots in _optimizer_states(model, optimizers):
        for slot, value in slots.items():
            target = saved if isinstance(value, Tensor) else scalars
            target[f"optimizer.{name}.{slot}"] = value
    return saved, scalars


def restore(
    saved: Mapping[str, Any],
    model: nn.Module,
    optimizers: Optimizers,
    tensors: Mapping[str, Tensor],
    *,
    numbered: bool = False,
) -> None:
    """Fills the model, the optimizers and the further tensors from tensors and numbers by key.

    Args:
        saved: what `collect` returned, together.
        model: its trained parameters are filled; frozen ones stay.
        optimizers: they get the states of their parameters.
        tensors: further tensors by name, filled in place.
        numbered: whether keys have numbers of optimizers and parameters, as in the first format.

    Raises:
        ValueError, RuntimeError, LookupError: for a state of something else.
    """
    further = {k: v for k, v in saved.items() if k.startswith(f"{FURTHER}.")}
    weights, slots = _by_name({k: v for k, v in saved.items() if k not in further})
    if numbered:
        slots = _names_for_numbers(slots, model, optimizers)
    _load_weights(model, weights)
    _fill(model, optimizers, slots)
    _restore(tensors, further)


def owner(key: str) -> str | None:
    """The parameter whose weights or optimizer state have a key; None for further tensors."""
    kind, _, rest = key.partition(".")
    return {"model": rest, "optimizer": rest.rpartition(".")[0]}.get(kind)


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
    names = {f"{FURTHER}.{name}" for name in tensors}
    if names != set(saved):
        raise ValueError(f"it lacks, or has beyond this run's, {sorted(names ^ set(saved))[0]!r}")
    for name, tensor in tensors.items():
        value = saved[f"{FURTHER}.{name}"]
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
