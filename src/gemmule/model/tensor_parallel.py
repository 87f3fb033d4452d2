"""One model over several processes that compute the same batch together (tensor parallel).

Query, key and value projections, gate and up are divided by columns, that is by heads and hidden
units; output projection and down by rows (Megatron-LM, arXiv 1909.08053, section 3). Each rank
computes its heads' attention and its hidden units, and one all-reduce per sublayer adds up what
they give, in the forward and in the backward pass. The tied embedding is divided by rows: a token's
row comes from the rank that has it, and the head computes its losses on its rows (losses/shard.py).
Norms are whole on every rank.

The model does not know: its parameters are DTensors, and hooks at its modules' inputs and outputs
do the rest.
"""

from typing import TYPE_CHECKING

from gemmule.errors import ConfigError
from gemmule.losses.shard import TENSOR_PARALLEL, shard_bounds
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_degree(config: GemmaConfig, ranks: int) -> None:
    """Refuses a number of ranks that a model cannot be divided over.

    Raises:
        ConfigError: naming the numbers that it can be.
    """
    heads, hidden = config.num_key_value_heads, config.intermediate_size
    allowed = [n for n in range(1, heads + 1) if heads % n == 0 and hidden % n == 0]
    if ranks not in allowed:
        raise ConfigError(
            f"tensor parallel over {ranks} ranks: the model has {heads} key-value heads and "
            f"{hidden} hidden units per layer, and each rank takes as many of both as the others; "
            f"use {' or '.join(map(str, allowed))}"
        )
    shard_bounds(config.vocab_size, ranks)


def parallelize(model: Gemma, mesh: "DeviceMesh") -> None:
    """Divides a model over the ranks of a mesh, in place; its parameters but norms are DTensors.

    Every rank has the same weights before, and keeps its part of them. Compiling of blocks and FSDP
    (train/sharding.py) come after. Works on the meta device too.

    Args:
        model: a model of any size.
        mesh: mesh of one dimension, named "tp".

    Raises:
        ConfigError: when its heads cannot be divided by the number of ranks.
    """
    # They take a second to import.
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        PrepareModuleInput,
        RowwiseParallel,
        parallelize_module,
    )

    assert mesh.mesh_dim_names == (TENSOR_PARALLEL,)
    check_degree(model.config, mesh.size())
    whole = Replicate()
    plan: dict[str, ParallelStyle] = {"embed_tokens": RowwiseParallel(input_layouts=whole)}
    attention = (whole, None, None, None)
    layer: dict[str, ParallelStyle] = {
        # One DTensor for the three or two products, so that their gradients are added first.
        "self_attn": PrepareModuleInput(input_layouts=attention, desired_input_layouts=attention),
        "mlp": PrepareModuleInput(input_layouts=whole, desired_input_layouts=whole),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    parallelize_module(model, mesh, plan, src_data_rank=None)
    for block in model.layers:
        parallelize_module(block, mesh, layer, src_data_rank=None)
