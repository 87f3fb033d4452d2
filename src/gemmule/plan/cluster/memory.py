"""Memory per device: states counted from the shapes as FSDP2 cuts them, activations from a model.

States, gathered weights and gradients are arithmetic: what `fully_shard` and tensor parallelism
leave on the rank with the most (tests compare it with the real `shard`, see simulation.py). What a
backward pass keeps per token is counted in multiples of the block's sizes, whose factors are fitted
to published peaks.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemmule.losses.chunked_head import chunk_size
from gemmule.plan.cluster.layout import Layout
from gemmule.plan.cluster.published import PublishedRun, published_runs
from gemmule.plan.cluster.shapes import Shape

Floats = npt.NDArray[np.float64]

STATE_BYTES = 16.0  # fp32 weights, gradients and AdamW's two moments
MARGIN = 0.06  # fraction of a device's memory left free: the driver, the collectives' buffers

# Factor, with its prior and the prior's width (of the logarithm).
_PRIORS: dict[str, tuple[float, float]] = {
    "kept": (1.0, 0.3),  # activations kept between the passes, over those counted
    "working": (1.0, 0.5),  # one block's activations in the backward pass, over those counted
    "logits": (1.0, 0.2),  # the loss's buffers over those counted
    "reserved": (1.06, 0.04),  # memory reserved by the allocator over what is in use
}
_RUN_ERROR = 0.04


@dataclass(frozen=True)
class Memory:
    """Bytes on the device with the most.

    Attributes:
        states: weights, gradients and the optimizer's states.
        gathered: whole weights and gradients of the units at work.
        kept: activations kept between the forward and the backward pass.
        working: activations of the block whose backward pass runs.
        logits: buffers of the loss.
        teacher: weights of a teacher: its share, and the block that is gathered.
    """

    states: float
    gathered: float
    kept: float
    working: float
    logits: float
    teacher: float = 0.0

    def peak(self, factors: Floats) -> float:
        """Peak bytes, with the logarithms of the factors of _PRIORS."""
        kept, working, logits, reserved = np.exp(factors)
        fixed = self.states + self.gathered + self.teacher
        # The loss is computed before the backward pass of the first block.
        moving = kept * self.kept + max(working * self.working, logits * self.logits)
        return float(reserved * (fixed + moving))


def count_memory(
    shape: Shape, layout: Layout, seq_len: int, teacher: Shape | None = None
) -> Memory:
    """Bytes on the device with the most, part by part.

    Args:
        shape: the trained model.
        layout: how it is spread.
        seq_len: tokens per sequence.
        teacher: a frozen teacher, spread the same way in bfloat16; None for none.
    """
    blocks = shape.layers / layout.pipeline
    block, root = map(float, shape.elements(layout.tensor, layout.shards))
    whole_block, whole_root = map(float, shape.elements(layout.tensor, 1))
    if layout.pipeline > 1:  # the first and the last stage have one matrix each
        root, whole_root = root / 2, whole_root / 2
    states = STATE_BYTES * (blocks * block + root)
    # Two blocks' weights (one is fetched ahead) and a block's gradients; the root unit stays.
    width = 4.0 if layout.dtype == "float32" else 2.0
    gathered = whole_block * 3 * width + whole_root * 2 * max(width, layout.root_bytes)
    if layout.keep_gathered or layout.pipeline > 1:
        gathered += blocks * whole_block * width
    if layout.pipeline > 1 and layout.shards > 1:
        # Gradients of all microbatches are added up in fp32 before they are reduced.
        gathered += 4.0 * (blocks * whole_block + whole_root)
    if layout.shards == 1:
        gathered = 2.0 * (blocks * whole_block + whole_root)
    tokens = layout.micro_batch * seq_len / layout.context
    cut = tokens / layout.tensor  # sequence parallelism spreads what lies between the blocks
    if layout.pipeline > 1:
        # 1F1B: the first rank holds as many microbatches as there are ranks.
        in_flight = min(layout.microbatches, layout.pipeline) / layout.microbatches
        kept_tokens, now = cut * in_flight, 1 / layout.microbatches
    else:
        kept_tokens, now = cut, 1.0
    everything = _block_bytes(shape)
    kept = {
        "none": everything,
        "selective": _selective_bytes(shape),
        "full": 2.0 * shape.width,
    }[layout.recompute]
    working = 0.0 if layout.recompute == "none" else everything * cut * now
    if layout.tensor > 1:  # inputs of attention and ffn, whole, and their gradients
        working += 4 * 2.0 * shape.width * tokens * now
    if layout.logit_bytes:
        logits = layout.logit_bytes * shape.vocab * cut * now
    else:  # a chunk of logits at a time, and the gradient of the head's input
        logits = 3 * 4.0 * chunk_size(shape.vocab) * shape.vocab / layout.tensor
        logits += 4.0 * cut * now * shape.width
    return Memory(
        states, gathered, kept * blocks * kept_tokens, working, logits,
        0.0 if teacher is None else _frozen(teacher, layout),
    )  # fmt: skip


def _frozen(teacher: Shape, layout: Layout) -> float:
    block, root = teacher.elements(layout.tensor, layout.shards)
    whole_block, whole_root = teacher.elements(layout.tensor, 1)
    return 2.0 * (teacher.layers * block + root + 2 * whole_block + whole_root)


def _block_bytes(shape: Shape) -> float:
    """Bytes per token that a block's backward pass needs, in bfloat16: inputs of each operation."""
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    ffn = (4 if shape.gated else 2) * shape.ffn
    return 2.0 * ((2 + 2 * shape.norms) * shape.width + 2 * heads + ffn)


def _selective_bytes(shape: Shape) -> float:
    """Bytes per token: the block's input, attention's result, every second product's."""
    heads = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim
    products = heads + (2 if shape.gated else 1) * shape.ffn + 2 * shape.width
    return 2.0 * (shape.width + shape.heads * shape.head_dim + products / 2)


def fit(runs: Sequence[PublishedRun]) -> Floats:
    """Logarithms of the factors of _PRIORS, from published peaks."""
    runs = [run for run in runs if run.memory_gib is not None]
    counted = [count_memory(run.shape, run.layout, run.seq_len) for run in runs]
    target = np.log([(run.memory_gib or 1.0) * 2**30 for run in runs])
    centre = np.log([value for value, _ in _PRIORS.values()])
    width = np.array([width for _, width in _PRIORS.values()])

    def residuals(values: Floats) -> Floats:
        peaks = np.log([memory.peak(values) for memory in counted])
        errors = (peaks - target) / _RUN_ERROR
        errors = np.sign(errors) * np.sqrt(5 * np.log1p(errors**2 / 4))
        return np.concatenate([errors, (values - centre) / width])

    values = centre.copy()
    now = residuals(values)
    for _ in range(15):
        slope = np.stack(
            [(residuals(values + step) - now) / 1e-5 for step in 1e-5 * np.eye(len(values))], axis=1
        )
        normal = slope.T @ slope
        move = np.linalg.solve(normal + 1e-3 * np.diag(np.diag(normal)), -slope.T @ now)
        after = residuals(values + move)
        while after @ after > now @ now and np.abs(move).max() > 1e-4:
            move = move / 2
            after = residuals(values + move)
        values, now = values + move, after
        if np.abs(move).max() < 1e-4:
            break
    return values


@functools.cache
def fitted() -> Floats:
    """Factors from all published peaks."""
    return fit(published_runs())


def left_out(runs: Sequence[PublishedRun]) -> list[float | None]:
    """Predicted over published peak of each run, from a fit without it; None: not published."""
    return [
        None
        if run.memory_gib is None
        else count_memory(run.shape, run.layout, run.seq_len).peak(
            fit([other for j, other in enumerate(runs) if j != i])
        )
        / (run.memory_gib * 2**30)
        for i, run in enumerate(runs)
    ]
