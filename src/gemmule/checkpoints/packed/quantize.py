"""Packs the matrices of a checkpoint, one tensor at a time.

Without calibration each matrix is rounded by itself. With calibration, text passes through the
model layer by layer, in fp32, and each int4 matrix is rounded for the inputs that it receives from
the matrices already rounded (quant/gptq.py). The errors of int6 and int8 are too small to gain from
that. Memory holds the packed matrices, one layer, and the text's hidden states.

Shapes: B sequences of calibration text, T tokens, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import Checkpoint
from gemmule.checkpoints.packed.reader import EMBEDDING, QuantizedModel, matrix_shape
from gemmule.checkpoints.quality import documents
from gemmule.checkpoints.stored_tensor import StoredTensor
from gemmule.checkpoints.streamed_forward import filled
from gemmule.config import nearest
from gemmule.console import Progress
from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Block, RMSNorm, rope_tables
from gemmule.quant import gptq, packed
from gemmule.quant.gptq import Hessian
from gemmule.quant.layout import FLOATS, PACKED, bits_per_weight
from gemmule.quant.packed import FORMATS, PackedMatrix

# Bits per weight of llama.cpp's types: blocks of 32 with an fp16 scale, and Q6_K's of 256.
_Q4_0, _Q6_K, _Q8_0 = 4.5, 6.5625, 8.5
# Linear layers of a block that share an input, in the order in which they run.
_STAGES = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
_TOKENS = 2048  # tokens that go through a layer at once
# The head is also the embedding, whose rows are looked up, so their own error counts too.
HEAD_DAMPING = 0.3


def quantize_checkpoint(
    checkpoint: Checkpoint,
    format: str,
    head: str | None = None,
    calibration_BT: Tensor | None = None,
    progress: Progress = lambda *_: None,
) -> QuantizedModel:
    """Packs the matrices of a checkpoint.

    Args:
        checkpoint: an open checkpoint; its weights are read once.
        format: format of the layers' matrices: "int4", "int6" or "int8".
        head: format of the embedding, which is also the output head: one of those, "bf16" or
            "f32"; None: see `choose_head`.
        calibration_BT: token ids to calibrate int4 on; None: no calibration.
        progress: called with the activity, and the number of weights done and in total.

    Raises:
        ConfigError: for an unknown format.
        CheckpointError: when weights are missing, damaged, NaN or Inf.
        TokenizerError: when its tokenizer is broken.
    """
    for value, allowed in ((format, PACKED), (head or format, FORMATS)):
        if value not in allowed:
            raise ConfigError(f"unknown format {value!r}; {nearest(value, list(allowed))}")
    config, tokenizer = checkpoint.config, checkpoint.tokenizer_if_any
    checkpoint.check_head()
    stored = {tensor.name: tensor for tensor in checkpoint.weights()}
    work = _Work(checkpoint, format, head or choose_head(config, format), progress)
    norms = {
        name: tensor.copy(torch.float32, torch.device("cpu"))
        for name, tensor in stored.items()
        if matrix_shape(config, name) is None
    }
    if calibration_BT is not None and "int4" in (format, work.head):
        work.calibrated(calibration_BT)
    else:
        for name in stored:
            if name not in norms:
                work.pack(name)
    matrices = {name: work.done[name] for name in stored if name not in norms}
    return QuantizedModel(config, tokenizer, format, work.head, matrices, norms)


def choose_head(config: GemmaConfig, format: str) -> str:
    """The default format of the head.

    With int4 layers it is the finest one with which the model is no larger than llama.cpp's Q4_0
    file of it; otherwise it is that of the layers.
    """
    if format == "int4":
        for finer in ("int8", "int6"):
            if model_bits(config, format, finer) <= q4_0_bits(config):
                return finer
    return format


def model_bits(config: GemmaConfig, format: str, head: str) -> float:
    """Bits per weight of a model with these formats."""
    total = 0.0
    for name, count in _matrices(config).items():
        shape = matrix_shape(config, name)
        assert shape is not None
        form = head if name == EMBEDDING else format
        total += count * shape[0] * shape[1] * bits_per_weight(form, *shape)
    return (total + 32 * _norm_weights(config)) / config.parameters


def q4_0_bits(config: GemmaConfig) -> float:
    """Bits per weight of llama.cpp's Q4_0 file of such a model, whose head has a finer type."""
    embedding = config.vocab_size * config.hidden_size
    norms = _norm_weights(config)
    layers = config.parameters - embedding - norms
    head = _Q6_K if config.hidden_size % 256 == 0 else _Q8_0  # llama.cpp's fallback
    return (layers * _Q4_0 + embedding * head + norms * 32) / config.parameters


def _norm_weights(config: GemmaConfig) -> int:
    return (4 * config.num_hidden_layers + 1) * config.hidden_size


def _matrices(config: GemmaConfig) -> dict[str, int]:
    """The number of matrices of each kind, by the name of one of them."""
    names = (f"layers.0.{name}.weight" for stage in _STAGES for name in stage)
    return {EMBEDDING: 1, **dict.fromkeys(names, config.num_hidden_layers)}


class _Work:
    """The state of one quantization."""

    def __init__(self, checkpoint: Checkpoint, format: str, head: str, progress: Progress) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.format, self.head, self.progress = format, head, progress
        self.done: dict[str, PackedMatrix] = {}

    def pack(self, name: str, hessian: Hessian | None = None) -> PackedMatrix:
        """Packs one matrix, with a Hessian for the inputs that it accumulated."""
        form = self.head if name == EMBEDDING else self.format
        tensor = self.checkpoint.tensors[name]
        self.done[name] = _packed(tensor, form, hessian, name == EMBEDDING)
        done = sum(matrix.rows * matrix.columns for matrix in self.done.values())
        self.progress(done, self.config.parameters, "weights")
        return self.done[name]

    @torch.inference_mode()
    def calibrated(self, tokens_BT: Tensor) -> None:
        """Packs all matrices, each for the inputs that it receives from those before it."""
        config = self.config
        rope = rope_tables(
            torch.arange(tokens_BT.shape[1])[None], config.head_dim, config.rope_theta
        )
        embedding = self.pack(EMBEDDING)
        parts = tokens_BT.split(max(1, _TOKENS // tokens_BT.shape[1]))
        doc_ids = [documents(part) for part in parts]
        x = [embedding.take(part) * config.hidden_size**0.5 for part in parts]
        for i in range(config.num_hidden_layers):
            with torch.device("meta"):
                block = Block(config, i)
            filled(self.checkpoint, block, f"layers.{i}.")
            for stage in _STAGES:
                hessian = None
                if self.format == "int4":
                    hessian = _inputs(block, stage[0], x, rope, doc_ids)
                for name in stage:
                    matrix = self.pack(f"layers.{i}.{name}.weight", hessian)
                    linear = block.get_submodule(name)
                    linear.weight = nn.Parameter(matrix.dequantize(), requires_grad=False)
            x = [block(y, rope, ids) for y, ids in zip(x, doc_ids, strict=True)]
        if self.head == "int4":
            norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            filled(self.checkpoint, norm, "norm.")
            hessian = Hessian(config.hidden_size)
            for part in x:
                hessian.add(norm(part))
            self.pack(EMBEDDING, hessian)


def _packed(tensor: StoredTensor, form: str, hessian: Hessian | None, head: bool) -> PackedMatrix:
    weight = tensor.copy(FLOATS.get(form, tensor.dtype), torch.device("cpu"))
    if form == "int4" and hessian is not None:
        return gptq.quantize(weight, hessian.mean_KK, HEAD_DAMPING if head else gptq.DAMPING)
    return packed.quantize(weight, form)


class _Enough(Exception):
    """Raised when a layer's inputs are known, so that the rest of the block need not run."""


def _inputs(
    block: Block,
    name: str,
    x: Sequence[Tensor],
    rope: tuple[Tensor, Tensor],
    doc_ids: Sequence[Tensor],
) -> Hessian:
    """Accumulates the inputs of the linear layer `name`."""
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    hessian = Hessian(linear.in_features)

    def look(_: nn.Module, inputs: Sequence[Tensor]) -> None:
        hessian.add(inputs[0])
        raise _Enough

    hook = linear.register_forward_pre_hook(look)
    try:
        for y, ids in zip(x, doc_ids, strict=True):
            try:
                block(y, rope, ids)
            except _Enough:
                continue
    finally:
        hook.remove()
    return hessian
