"""Memory of a training process on a CPU: counted from shapes, anchored by a measurement.

What is counted is what changes with the model, the micro-batch and the length of a row: weights,
gradients, optimizer states, what the backward pass keeps, the loss's buffers. The rest
(interpreter, libraries, compiler) is in the measured peak that the count is added to.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gemmule.losses.chunked_head import TILE_BYTES, chunk_size
from gemmule.model.block_attention import QUERY_BLOCK
from gemmule.model.config import GemmaConfig

MARGIN = 0.1  # fraction of the memory that is left free: the error of a prediction
HEAP_GROWTH = 1.04  # a whole run's peak over that of its first few steps: the heap fragments

# Numbers kept per token of a layer, apart from the attention's scores, in multiples of the width
# D and the ffn's width F; the last is what one layer's backward pass adds for a while. Found from
# peaks of presets 1m and 3m at 8 to 32 rows (docs/plan.md).
_KEPT = {False: (12.0, 4.0, 8.0), True: (8.0, 3.0, 6.0)}  # by whether blocks are compiled
_WORKSPACE = 5  # copies of its largest group of matrices that Muon holds during a step


@dataclass(frozen=True)
class StepShape:
    """What decides the memory that a step takes.

    Attributes:
        student: shape of the trained model.
        rows: sequences per micro-batch.
        seq_len: tokens per sequence.
        compiled: whether blocks are compiled.
        half: whether activations are bfloat16.
        teacher: shape of a teacher whose forward pass is part of the step; None for none.
    """

    student: GemmaConfig
    rows: int
    seq_len: int
    compiled: bool
    half: bool = False
    teacher: GemmaConfig | None = None


def counted_bytes(shape: StepShape) -> float:
    """Bytes at the peak of a step, as far as the shape decides them."""
    states = _state_bytes(shape.student)
    if shape.teacher is not None:
        states += 4 * shape.teacher.parameters
    working = max(_activation_bytes(shape) + _loss_bytes(shape), _workspace_bytes(shape.student))
    return states + working


def predict_peak(measured: float, at: StepShape, wanted: StepShape) -> float:
    """The peak at `wanted`, from one measured `at` another shape and the counted difference."""
    return measured + counted_bytes(wanted) - counted_bytes(at)


def largest_rows(peak: Callable[[int], float], memory: float, max_rows: int = 2**20) -> int:
    """The largest micro-batch whose predicted peak leaves MARGIN of the memory free.

    Args:
        peak: bytes for a number of sequences; grows with it.
        memory: bytes available.
        max_rows: where the search stops.

    Returns:
        0 when not even one fits.
    """
    low, high = 0, max_rows
    while low < high:
        middle = (low + high + 1) // 2
        if peak(middle) <= (1 - MARGIN) * memory:
            low = middle
        else:
            high = middle - 1
    return low


def _state_bytes(config: GemmaConfig) -> float:
    """Weights, gradients, Muon's momentum for matrices and AdamW's two for the rest, fp32."""
    hidden = config.non_embedding_parameters
    embedding = config.vocab_size * config.hidden_size
    # The tied embedding's gradient comes in two parts, from below and from the head.
    return 12.0 * hidden + 20.0 * embedding


def _workspace_bytes(config: GemmaConfig) -> float:
    """Muon works on all matrices of one shape at once; the ffn's three a layer are the most."""
    group = 3 * config.num_hidden_layers * config.hidden_size * config.intermediate_size
    return 4.0 * _WORKSPACE * group


def _activation_bytes(shape: StepShape) -> float:
    c, tokens = shape.student, shape.rows * shape.seq_len
    d, f, passing = _KEPT[shape.compiled]
    heads = (3 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    layer = d * c.hidden_size + f * c.intermediate_size + heads
    width = 2 if shape.half else 4
    kept = c.num_hidden_layers * layer + passing * (c.hidden_size + c.intermediate_size)
    scores = sum(
        c.num_attention_heads * _keys(shape.seq_len, c.sliding_window if c.is_local(i) else None)
        for i in range(c.num_hidden_layers)
    )
    return tokens * (width * kept + 4 * scores)


def _keys(seq_len: int, window: int | None) -> float:
    """Keys that a query's scores are kept for, on average: blocks of queries meet whole ranges."""
    total, start = 0, 0
    while start < seq_len:
        stop = min(start + QUERY_BLOCK, seq_len)
        first = 0 if window is None else max(0, start - window + 1)
        total += (stop - start) * (stop - first)
        start = stop
    return total / seq_len


def _loss_bytes(shape: StepShape) -> float:
    """One chunk's logits for each model, tiles of intermediate results, and x's gradient."""
    models = 1 if shape.teacher is None else 2
    tokens, vocab = shape.rows * shape.seq_len, shape.student.vocab_size
    chunk = min(tokens, chunk_size(vocab))
    width = shape.student.hidden_size + (shape.teacher.hidden_size if shape.teacher else 0)
    return 4.0 * (models * chunk * vocab + tokens * width) + 3.0 * models * TILE_BYTES
