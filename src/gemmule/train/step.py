"""The gradients and metrics of one optimizer step, over its micro-batches and over all ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gemmule.data.batch import Batch
from gemmule.model.gemma import Gemma
from gemmule.runtime.config import RuntimeConfig
from gemmule.runtime.world import StepSums, World
from gemmule.train.objective import Objective


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
        denominator: what the summed loss of these batches is divided by.
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
        tokens: tokens of the batches of all ranks.
        fraction: this rank's part of the denominator.
        stop: whether a rank was asked to stop.
        due: whether a rank's clock says that a training state is due.
    """

    means: Mapping[str, float]
    tokens: int
    fraction: float
    stop: bool
    due: bool


def agree(
    world: World,
    means: Mapping[str, float],
    denominator: float,
    tokens: int,
    *,
    stop: bool,
    due: bool,
) -> Agreement:
    """Joins the ranks' metrics and flags in one all-reduce; alone, returns them as they are.

    Args:
        world: ranks of the run.
        means: this rank's metrics, from `accumulate`.
        denominator: this rank's denominator.
        tokens: tokens of this rank's batches.
        stop: whether this rank was asked to stop.
        due: whether this rank's clock says that a training state is due.
    """
    if world.size == 1:
        return Agreement(means, tokens, 1.0, stop, due)
    sums = {name: mean * denominator for name, mean in means.items()}
    own = StepSums(
        {"denominator": denominator, "tokens": tokens, **sums},
        non_finite=not math.isfinite(means["loss"]),
        stop=stop,
        due=due,
    )
    total = own.over(world)
    whole = total.sums["denominator"]
    joined = {name: total.sums[name] / whole for name in means}
    if total.non_finite:  # an infinity of either sign on two ranks would not add up to one
        joined["loss"] = math.nan
    fraction = denominator / whole
    return Agreement(joined, int(total.sums["tokens"]), fraction, total.stop, total.due)


def sum_gradients(model: nn.Module, fraction: float) -> None:
    """Adds up the gradients of all ranks, each weighted by its rank's part of the denominator."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(fraction)
            dist.all_reduce(parameter.grad)
