"""The best layout of a run on a cluster, among those that fit."""

import dataclasses
import math
from dataclasses import dataclass

from gemmule.errors import ConfigError
from gemmule.plan.cluster import efficiency, memory
from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.layout import Layout, candidates
from gemmule.plan.cluster.memory import Memory, count_memory
from gemmule.plan.cluster.shapes import Shape
from gemmule.plan.cluster.step import StepWork, step_work

_MOST = 2**17  # devices up to which a cluster that is large enough is looked for


@dataclass(frozen=True)
class Estimate:
    """A layout with what it takes.

    Attributes:
        layout: the layout.
        memory: bytes per device, part by part.
        peak_bytes: predicted peak per device.
        seconds: seconds of a step by part, and "step", their sum.
        tokens: tokens/s per device.
    """

    layout: Layout
    memory: Memory
    peak_bytes: float
    seconds: dict[str, float]
    tokens: float


def estimate(
    shape: Shape, cluster: Cluster, layout: Layout, seq_len: int, teacher: Shape | None = None
) -> Estimate:
    """Memory and time of one layout."""
    counted = count_memory(shape, layout, seq_len, teacher)
    work = step_work(shape, cluster, layout, seq_len)
    if teacher is not None:
        work = with_teacher(work, teacher, cluster, layout, seq_len)
    stack = efficiency.TPU_STACK if cluster.device.family == "tpu" else efficiency.STACK
    setting = efficiency.Setting(cluster.device.family, stack, layout.compiled, layout.async_tensor)
    seconds = efficiency.fitted().seconds(work, setting)
    return Estimate(
        layout, counted, counted.peak(memory.fitted()), seconds, work.tokens / seconds["step"]
    )


def with_teacher(
    work: StepWork, teacher: Shape, cluster: Cluster, layout: Layout, seq_len: int
) -> StepWork:
    """The work of a step with the forward pass of a teacher that is spread the same way."""
    device = cluster.device
    peak = device.peak_of("bfloat16" if layout.dtype == "float8" else layout.dtype)
    alone = dataclasses.replace(layout, recompute="none", keep_gathered=True, replicas=1)
    forward = step_work(teacher, cluster, alone, seq_len)
    products = (teacher.linear_flops() + teacher.head_flops()) * work.tokens
    gathers = 2.0 / (2.0 + 4.0)  # weights once, and no gradients
    return dataclasses.replace(
        work,
        matrix=work.matrix + products / peak,
        attention=work.attention + teacher.attention_flops(seq_len) * work.tokens / peak,
        elementwise=work.elementwise + forward.elementwise / 3,
        gather=work.gather + forward.gather * gathers,
        tensor=work.tensor + forward.tensor / 2,
    )


def usable_bytes(cluster: Cluster) -> float:
    """Memory of a device that a plan may fill."""
    return (1 - memory.MARGIN) * cluster.device.memory_bytes


def choose(
    shape: Shape,
    cluster: Cluster,
    sequences: int,
    seq_len: int,
    dtype: str,
    teacher: Shape | None = None,
) -> list[Estimate]:
    """Layouts that fit, fastest first.

    Args:
        shape: the trained model.
        cluster: the devices.
        sequences: sequences per optimizer step.
        seq_len: tokens per sequence.
        dtype: data type of the matrix products.
        teacher: a teacher whose forward pass is part of each step.

    Raises:
        ConfigError: when nothing fits, with what would; or the device lacks the data type.
    """
    everything = [
        estimate(shape, cluster, layout, seq_len, teacher)
        for layout in candidates(shape, cluster, sequences, dtype)
    ]
    fitting = [one for one in everything if one.peak_bytes <= usable_bytes(cluster)]
    if not fitting:
        raise ConfigError(_nothing_fits(shape, cluster, everything, seq_len, teacher))
    return sorted(fitting, key=lambda one: -one.tokens)


def smallest(
    shape: Shape, cluster: Cluster, seq_len: int, dtype: str, teacher: Shape | None = None
) -> int | None:
    """Number of such devices, a power of two times the group's size, from which on a model fits."""
    count = 1
    while count <= _MOST:
        more = dataclasses.replace(cluster, count=count)
        layouts = candidates(shape, more, count, dtype)
        for layout in layouts:
            if layout.recompute == "full" and layout.micro_batch == 1:
                peak = count_memory(shape, layout, seq_len, teacher).peak(memory.fitted())
                if peak <= usable_bytes(cluster):
                    return count
        count *= 2
    return None


def _nothing_fits(
    shape: Shape, cluster: Cluster, tried: list[Estimate], seq_len: int, teacher: Shape | None
) -> str:
    least = min(tried, key=lambda one: one.peak_bytes)
    enough = smallest(shape, cluster, seq_len, least.layout.dtype, teacher)
    what = shape.name if teacher is None else f"{shape.name} with its teacher {teacher.name}"
    total = memory.STATE_BYTES * shape.parameters / 2**30
    advice = (
        f"use at least {cluster.key}x{enough}, or devices with more memory"
        if enough is not None and enough > cluster.count
        else "use devices with more memory, or shorter sequences"
    )
    return (
        f"{what} does not fit on {cluster}: the most economical layout ({least.layout.text}) needs "
        f"{least.peak_bytes / 2**30:,.1f} GiB per device, and {cluster.device.name} has "
        f"{math.floor(usable_bytes(cluster) / 2**30):,} of {cluster.device.memory_gib:g} to fill; "
        f"weights, gradients and AdamW's states alone are {total:,.0f} GiB over all devices: "
        f"{advice}"
    )
