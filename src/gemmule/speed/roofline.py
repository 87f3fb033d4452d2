"""The least that a step must read and compute, and the least time that takes.

A step reads every weight once, however many tokens are in it, and for each sequence the keys and
values that its tokens may see. It computes two operations for each weight and token.
"""

from dataclasses import dataclass

from gemmule.infer.runners.native_runner import matrices_of, packed_of
from gemmule.infer.runners.protocol import PAGE, Runner
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.quant.layout import FLOATS


@dataclass(frozen=True)
class Machine:
    """What a machine can do at most.

    Attributes:
        bandwidth: bytes read from memory in a second.
        operations: of matrix products in the model's kind of numbers, in a second.
    """

    bandwidth: float
    operations: float


@dataclass(frozen=True)
class Floor:
    """The least time of a step.

    Attributes:
        seconds: of both, the longer one.
        bound: "memory" or "arithmetic": which one that is.
        bytes_read: by the step.
        operations: of the step.
    """

    seconds: float
    bound: str
    bytes_read: float
    operations: float


@dataclass(frozen=True)
class Model:
    """A model as a load for a machine.

    Attributes:
        config: its shape.
        weight_bytes: of all matrices; the embedding is read once, as the head.
        position_bytes: keys and values of one position in one layer.
        format: of the layers' matrices.
        head: of the embedding's.
    """

    config: GemmaConfig
    weight_bytes: int
    position_bytes: float
    format: str
    head: str

    @property
    def packed(self) -> bool:
        """Whether products are of integers."""
        return self.format not in FLOATS

    @property
    def bits_per_weight(self) -> float:
        """Of the matrices."""
        return 8 * self.weight_bytes / matrix_weights(self.config)

    def cache_bytes(self, context: float) -> float:
        """Keys and values that a token reads which sees `context` positions, its own included."""
        return self.position_bytes * visible(self.config, context)

    def step(self, machine: Machine, sequences: int, context: float) -> Floor:
        """A step of decoding: one token for each of some sequences."""
        config = self.config
        each = 2 * matrix_weights(config) + attention_operations(config, context)
        read = self.weight_bytes + sequences * self.cache_bytes(context)
        return _floor(machine, read, sequences * each)

    def prompt(self, machine: Machine, tokens: int) -> Floor:
        """A prompt whose last token's continuation is predicted, no other's."""
        config = self.config
        head = config.vocab_size * config.hidden_size
        operations = 2.0 * (tokens * (matrix_weights(config) - head) + head)
        operations += sum(attention_operations(config, seen) for seen in range(1, tokens + 1))
        return _floor(machine, self.weight_bytes, operations)


def of_model(model: Gemma, runner: Runner) -> Model:
    """A loaded model and who runs it, as a load."""
    matrices = [matrix for layer in model.layers for matrix in matrices_of(layer).values()]
    embedding = packed_of(model.embed_tokens)
    layers_of_a_page = (runner.config.num_hidden_layers + 1) // 2
    return Model(
        runner.config,
        embedding.nbytes + sum(matrix.nbytes for matrix in matrices),
        runner.page_bytes / PAGE / layers_of_a_page,
        matrices[0].format,
        embedding.format,
    )


def matrix_weights(config: GemmaConfig) -> int:
    """Weights that a token's forward pass is multiplied with, the head's included."""
    return config.parameters - (4 * config.num_hidden_layers + 1) * config.hidden_size


def visible(config: GemmaConfig, context: float) -> float:
    """Positions that a token sees, added up over the layers."""
    return sum(
        min(config.sliding_window, context) if config.is_local(layer) else context
        for layer in range(config.num_hidden_layers)
    )


def attention_operations(config: GemmaConfig, context: float) -> float:
    """Operations of one token's attention over `context` positions."""
    width = config.num_attention_heads * config.head_dim
    return 4.0 * width * visible(config, context)


def _floor(machine: Machine, read: float, operations: float) -> Floor:
    memory, arithmetic = read / machine.bandwidth, operations / machine.operations
    bound = "memory" if memory >= arithmetic else "arithmetic"
    return Floor(max(memory, arithmetic), bound, read, operations)
