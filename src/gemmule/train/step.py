"""The gradients and metrics of one optimizer step, over its micro-batches and over all ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.runtime.config import RuntimeConfig
from gemmule.runtime.world import StepSums, World
from gemmule.train.objective import Objective
from gemmule.train.sharding import is_sharded, local_square, sum_gradients


def accumulate(
    model: Gemma,
    objective: Objective,
    batches: Sequence[Batch],
    denominator: float,
    runtime: RuntimeConfig,
) -> dict[str, float]:
    """Adds to the gradients those of a step: of the summed loss divided by the denominator.

    Args:
        model: model to train.
        objective: loss.
        batches: micro-batches of the step.
        denominator: what the summed loss of a step is divided by, over all ranks.
        runtime: device and dtype, resolved.

    Returns:
        "loss" and the objective's further sums by name, each divided by the denominator.
    """
    half = runtime.dtype == "bfloat16"
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad(), torch.autocast(runtime.device, torch.bfloat16, enabled=half):
        objective.begin_step(model, batches)
    for batch in batches:
        with torch.autocast(runtime.device, torch.bfloat16, enabled=half):
            loss, sums = objective.loss(model, batch.to(runtime.device))
        (loss / denominator).backward()
        for name, value in {"loss": loss, **sums}.items():
            parts.setdefault(name, []).append(value.detach().double())
    # One transfer a step: reading a value waits for the device.
    values = iter(torch.stack([v for vs in parts.values() for v in vs]).tolist())
    means = dict.fromkeys(parts, 0.0)
    for name, part in parts.items():
        for _ in part:
            means[name] += next(values) / denominator
    return means


@dataclass(frozen=True)
class Agreement:
    """What all ranks know about a step.

    Attributes:
        means: metrics over the batches of all ranks.
        norm: norm of the gradient of a sharded model; None where each rank holds all of it.
        stop: whether a rank was asked to stop.
        due: whether a rank's clock says that a training state is due.
    """

    means: Mapping[str, float]
    norm: float | None
    stop: bool
    due: bool


def count(world: World, objective: Objective, batches: Sequence[Batch]) -> tuple[float, int]:
    """The denominator of a step and its number of tokens, over the batches of all ranks."""
    tokens = sum(batch.tokens_BT.numel() for batch in batches)
    denominator, total = world.sum([objective.denominator(batches), tokens])
    return denominator or 1.0, int(total)


def reduce(
    world: World,
    model: Gemma,
    means: Mapping[str, float],
    *,
    stop: bool,
    due: bool,
) -> Agreement:
    """Adds up the gradients of all ranks, and joins their metrics and flags in one all-reduce.

    Alone, returns the metrics and flags as they are.

    Args:
        world: ranks of the run.
        model: model with this rank's gradients; those of a sharded one are sums already.
        means: this rank's metrics, from `accumulate` with the denominator of all ranks.
        stop: whether this rank was asked to stop.
        due: whether this rank's clock says that a training state is due.
    """
    if world.every.size == 1:
        return Agreement(means, None, stop, due)
    sharded = is_sharded(model)
    if not sharded:
        sum_gradients(model)
    own = StepSums(
        {**means, "square": local_square(model, world) if sharded else 0.0},
        non_finite=not math.isfinite(means["loss"]),
        stop=stop,
        due=due,
    )
    total = own.over(world)
    joined = {name: total.sums[name] for name in means}
    if total.non_finite:  # an infinity of either sign on two ranks would not add up to one
        joined["loss"] = math.nan
    norm = math.sqrt(total.sums["square"]) if sharded else None
    return Agreement(joined, norm, total.stop, total.due)
