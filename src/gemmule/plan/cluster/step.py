"""Work of a training step on one device, each part in seconds at the device's own peak.

The parts are what a roofline is made of: FLOPs over peak FLOP/s, bytes over bandwidth, bytes on a
link over the link's bandwidth. efficiency.py learns from published runs what fraction of each peak
is reached and what is hidden behind what.
"""

import math
from dataclasses import dataclass

from gemmule.plan.cluster.devices import Cluster
from gemmule.plan.cluster.layout import Layout
from gemmule.plan.cluster.shapes import Shape

# Element-wise traffic of a block, forward and backward, in bytes per token and unit of width or
# ffn, if each chain of operations were fused: norms, rotary positions, residuals, the gate.
_WIDTH_BYTES, _FFN_BYTES, _LOGIT_BYTES = 64.0, 24.0, 16.0
_OPTIMIZER_BYTES = 28.0  # AdamW in fp32 reads four numbers per parameter and writes three
_BACKWARD_ATTENTION = 2.5  # flash attention's backward pass over its forward: five products to two


@dataclass(frozen=True)
class StepWork:
    """Seconds at peak for one optimizer step on one device.

    Attributes:
        tokens: tokens of the step, per device.
        matrix, matrix8: matrix products in bfloat16 (or float32) and in float8.
        attention: products between queries and keys.
        elementwise: memory traffic outside the products.
        gather: FSDP's gathers and reductions, and HSDP's all-reduce.
        tensor, context: communication of tensor and context parallelism.
        optimizer: memory traffic of the optimizer.
        bubble: idle fraction of a pipeline over its busy time.
        ring: fraction of the keys that come from other ranks in ring attention.
        doublings: doublings of the number of servers (groups of eight devices), for stragglers.
        narrowness: sum of 1/m + 1/n + 1/k of the products' sizes: small products reach less.
    """

    tokens: float
    matrix: float
    matrix8: float
    attention: float
    elementwise: float
    gather: float
    tensor: float
    context: float
    optimizer: float
    bubble: float
    ring: float
    doublings: float
    narrowness: float


def step_work(shape: Shape, cluster: Cluster, layout: Layout, seq_len: int) -> StepWork:
    """The work of a step.

    Raises:
        ConfigError: when the device does not compute in the layout's data type.
    """
    device, ranks = cluster.device, layout.model_ranks
    tokens = layout.micro_batch * layout.accumulate * seq_len / ranks  # per device
    base = "bfloat16" if layout.dtype == "float8" else layout.dtype
    whole = 1.0 if layout.recompute == "full" else 0.0
    again = 0.5 if layout.recompute == "selective" else whole  # every second product
    blocks = (3 + again) * shape.linear_flops() * tokens
    head = 3 * shape.head_flops() * tokens
    eight = layout.dtype == "float8"
    attention = shape.attention_flops(seq_len) * (1 + _BACKWARD_ATTENTION + whole) * tokens
    passes = layout.accumulate * max(1, layout.microbatches)
    per_product = tokens * layout.tensor * layout.pipeline / passes  # rows that a product has
    return StepWork(
        tokens=tokens,
        matrix=(head if eight else blocks + head) / device.peak_of(base),
        matrix8=blocks / device.peak_of("float8") if eight else 0.0,
        attention=attention / device.peak_of(base),
        elementwise=_elementwise(shape, layout) * tokens / device.bandwidth,
        gather=layout.accumulate * _gather_seconds(shape, cluster, layout),
        tensor=_tensor_seconds(shape, cluster, layout, tokens * layout.tensor),
        context=_context_seconds(shape, cluster, layout, seq_len),
        optimizer=_OPTIMIZER_BYTES * sum(_local(shape, layout)) / device.bandwidth,
        bubble=(layout.pipeline - 1) / (max(1, layout.microbatches) * layout.virtual),
        ring=1 - 1 / layout.context if layout.ring else 0.0,
        doublings=math.log2(max(1.0, cluster.count / 8)),
        narrowness=1 / shape.width + layout.tensor / shape.ffn + 1 / per_product,
    )


def _elementwise(shape: Shape, layout: Layout) -> float:
    """Bytes per token on one device; selective recomputation repeats most of the forward pass."""
    again = {"none": 1.0, "selective": 1.25, "full": 1.33}[layout.recompute]
    gated = 1.5 if shape.gated else 1.0
    block = _WIDTH_BYTES * shape.width * (shape.norms / 2) + _FFN_BYTES * gated * shape.ffn
    return again * shape.layers * block + _LOGIT_BYTES * shape.vocab


def _local(shape: Shape, layout: Layout) -> tuple[float, float]:
    """Parameters on the device with the most: of its blocks, and of its part of the root unit.

    A pipeline shares the blocks evenly; its first and last stage have one matrix of the root each.
    """
    block, root = shape.elements(layout.tensor, layout.shards)
    return block * shape.layers / layout.pipeline, root / (2 if layout.pipeline > 1 else 1)


@dataclass(frozen=True)
class Moved:
    """Bytes that FSDP's and HSDP's collectives put together in one pass, on one rank.

    Attributes:
        gathered: results of the all-gathers of weights.
        scattered: inputs of the reduce-scatters of gradients.
        reduced: gradients of one shard, which HSDP adds up over its groups.
    """

    gathered: float
    scattered: float
    reduced: float


def moved(shape: Shape, layout: Layout) -> Moved:
    """One pass: weights gathered for forward and backward, gradients reduced and scattered.

    FSDP2 pads each weight to equal shares of whole rows, so with more ranks than rows it moves more
    than the model has. The root unit is gathered once in fp32 (gemmule), or its embedding and its
    head twice in bfloat16 (torchtitan): four bytes in both.
    """
    blocks, root = _local(shape, layout)
    width = 4.0 if layout.dtype == "float32" else 2.0
    if layout.float8_gather:
        width = 1.0
    # A pipeline keeps its weights for all of its microbatches.
    gathers = 1 if layout.keep_gathered or layout.pipeline > 1 else 2
    shared = layout.shards if layout.shards > 1 else 0
    return Moved(
        gathered=shared * (gathers * width * blocks + 4.0 * root),
        scattered=shared * 4.0 * (blocks + root),
        reduced=4.0 * (blocks + root) if layout.replicas > 1 else 0.0,
    )


def _gather_seconds(shape: Shape, cluster: Cluster, layout: Layout) -> float:
    """One pass; a ring passes on all but a rank's own part, and for an all-reduce that twice."""
    shards, replicas, bytes_moved = layout.shards, layout.replicas, moved(shape, layout)
    seconds = 0.0
    if shards > 1:
        whole = bytes_moved.gathered + bytes_moved.scattered
        seconds += whole * (shards - 1) / shards / _link(cluster, layout.tensor, shards)
    if replicas > 1:
        around = 2 * bytes_moved.reduced * (replicas - 1) / replicas
        seconds += around / _link(cluster, layout.tensor * shards, replicas)
    return seconds


def _link(cluster: Cluster, inner: int, ranks: int) -> float:
    """Bytes/s into one device of a group of `ranks`, each `inner` devices apart.

    A ring over several servers uses the network cards of all devices of a server that are in it,
    so what crosses is shared by them.
    """
    device = cluster.device
    if inner * ranks <= device.fast_size:
        return device.fast
    inside = max(1, device.fast_size // inner)
    return min(device.fast, device.slow * min(inside, ranks))


def _tensor_seconds(shape: Shape, cluster: Cluster, layout: Layout, tokens: float) -> float:
    """Sequence parallelism: two gathers and two scatters per block and pass, forward and back."""
    if layout.tensor == 1:
        return 0.0
    collectives = 8 + (4 if layout.recompute == "full" else 0)
    fraction = (layout.tensor - 1) / layout.tensor
    layers = shape.layers / layout.pipeline
    # `tokens` are those of the tensor group; the ranks of a pipeline share layers, not tokens.
    moved = collectives * layers * tokens * layout.pipeline * shape.width * 2.0 * fraction
    return moved / _link(cluster, 1, layout.tensor)


def _context_seconds(shape: Shape, cluster: Cluster, layout: Layout, seq_len: int) -> float:
    """Keys and values of all other ranks, forward, and with their gradients backward."""
    if layout.context == 1:
        return 0.0
    sequences = layout.micro_batch * layout.accumulate
    rest = seq_len * (layout.context - 1) / layout.context
    kv = 2 * shape.kv_heads / layout.tensor * shape.head_dim * 2.0  # keys and values, 2 bytes each
    passes = 3 + (1 if layout.recompute == "full" else 0)
    moved = passes * shape.layers / layout.pipeline * sequences * rest * kv
    return moved / _link(cluster, layout.tensor, layout.context)
