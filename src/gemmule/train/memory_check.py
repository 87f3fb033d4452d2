"""Whether a run can fit into this machine's memory, by a lower bound of its need."""

import torch

from gemmule.errors import ConfigError
from gemmule.model.config import GemmaConfig
from gemmule.runtime import memory
from gemmule.train.config import RunConfig


def check_memory(config: RunConfig, shape: GemmaConfig) -> None:
    """Refuses a run that cannot fit, by a lower bound of the memory it needs.

    The bound counts weights, gradients and optimizer states, the activations that the backward pass
    of a micro-batch keeps, and the token ids of a step.

    Args:
        config: settings of the run.
        shape: shape of the model.

    Raises:
        ConfigError: when this machine has less memory than that.
    """
    total = memory.machine()
    if total is None or config.runtime.device == "cuda" or torch.cuda.is_available():
        return  # a GPU refuses by itself, and at once
    if config.parallel.data_parallel_shard_degree != 1:
        return  # how many machines share it is not known here
    states = 12 if config.optimizer.name == "muon" else 16
    width = 2 if config.runtime.dtype == "bfloat16" else 4
    of_block = {
        "none": 4 * shape.hidden_size + 3 * shape.intermediate_size,
        "selective": 3 * shape.hidden_size + 2 * shape.intermediate_size,
        "full": shape.hidden_size,
    }
    kept = shape.num_hidden_layers * of_block[config.runtime.activation_checkpointing] * width
    need = shape.parameters * states
    need += config.data.micro_batch * config.data.seq_len * kept + config.data.tokens_per_step * 24
    if need > total:
        raise ConfigError(
            f"this run needs at least {need / 2**30:,.1f} GiB of memory (the model "
            f"{shape.parameters * states / 2**30:,.1f}) and this machine has "
            f"{total / 2**30:.1f}: use a smaller preset, micro_batch_size or seq_len"
        )
