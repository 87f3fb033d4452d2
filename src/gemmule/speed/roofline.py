"""The roofline: the minimum that a step must read and compute, and the minimum time for that.

A step reads every weight once, whatever its number of tokens, and for each sequence the keys and
values that its tokens attend to. It computes two operations per weight and token.
"""

from dataclasses import dataclass

from gemmule.infer.runners.native_runner import matrices_of, packed_of
from gemmule.infer.runners.protocol import PAGE, Runner
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.quant.layout import FLOATS


@dataclass(frozen=True)
class MachineLimits:
    """Upper bounds of a machine's speed.

    Attributes:
        bandwidth: bytes read from memory per second.
        operations: operations per second in matrix products of the model's number format.
    """

    bandwidth: float
    operations: float


@dataclass(frozen=True)
class Bound:
    """The minimum time of a step.

    Attributes:
        seconds: the longer of the times for memory and for arithmetic.
        limit: "memory" or "arithmetic", whichever takes longer.
        bytes_read: bytes that the step reads.
        operations: operations that the step computes.
    """

    seconds: float
    limit: str
    bytes_read: float
    operations: float


@dataclass(frozen=True)
class ModelLoad:
    """What a model makes a machine read and compute.

    Attributes:
        config: shape of the model.
        weight_bytes: bytes of all matrices; the embedding is read once, as the head.
        position_bytes: bytes of the keys and values of one position in one layer.
        format: number format of the layers' matrices.
        head: number format of the embedding.
    """

    config: GemmaConfig
    weight_bytes: int
    position_bytes: float
    format: str
    head: str

    @property
    def packed(self) -> bool:
        """Whether the matrix products are integer products."""
        return self.format not in FLOATS

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the matrices."""
        return 8 * self.weight_bytes / matrix_weights(self.config)

    def cache_bytes(self, context: float) -> float:
        """Bytes of keys and values that a token reads at `context` positions, its own included."""
        return self.position_bytes * visible(self.config, context)

    def step(self, machine: MachineLimits, sequences: int, context: float) -> Bound:
        """A decoding step: one token for each sequence."""
        config = self.config
        each = 2 * matrix_weights(config) + attention_operations(config, context)
        read = self.weight_bytes + sequences * self.cache_bytes(context)
        return _bound(machine, read, sequences * each)

    def prompt(self, machine: MachineLimits, tokens: int) -> Bound:
        """A prompt, with logits after its last token only."""
        config = self.config
        head = config.vocab_size * config.hidden_size
        operations = 2.0 * (tokens * (matrix_weights(config) - head) + head)
        operations += sum(attention_operations(config, seen) for seen in range(1, tokens + 1))
        return _bound(machine, self.weight_bytes, operations)


def of_model(model: Gemma, runner: Runner) -> ModelLoad:
    """The load of a model with its runner."""
    matrices = [matrix for layer in model.layers for matrix in matrices_of(layer).values()]
    embedding = packed_of(model.embed_tokens)
    layers_of_a_page = (runner.config.num_hidden_layers + 1) // 2
    return ModelLoad(
        runner.config,
        embedding.nbytes + sum(matrix.nbytes for matrix in matrices),
        runner.page_bytes / PAGE / layers_of_a_page,
        matrices[0].format,
        embedding.format,
    )


def matrix_weights(config: GemmaConfig) -> int:
    """Number of weights in the matrix products of a token's forward pass, the head included."""
    return config.parameters - (4 * config.num_hidden_layers + 1) * config.hidden_size


def visible(config: GemmaConfig, context: float) -> float:
    """Positions that a token attends to, summed over the layers."""
    return sum(
        min(config.sliding_window, context) if config.is_local(layer) else context
        for layer in range(config.num_hidden_layers)
    )


def attention_operations(config: GemmaConfig, context: float) -> float:
    """Operations of one token's attention over `context` positions."""
    width = config.num_attention_heads * config.head_dim
    return 4.0 * width * visible(config, context)


def _bound(machine: MachineLimits, read: float, operations: float) -> Bound:
    memory, arithmetic = read / machine.bandwidth, operations / machine.operations
    limit = "memory" if memory >= arithmetic else "arithmetic"
    return Bound(max(memory, arithmetic), limit, read, operations)
