"""Weights, gradients and optimizer states in shards, by torch's FSDP2; what differs for them.

    mesh = data_mesh(world, -1, "cpu")       # one group of all ranks
    shard(model, mesh)                       # its parameters are DTensors now
    loss.backward()                          # adds the gradients up over all ranks
    square = local_square(model, world)      # added over ranks: the squared norm of the gradient

Every rank runs the same forward passes in the same order: each gathers weights from the others.

torch's modules for it take most of a second to import, and are imported where there are ranks.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gemmule.errors import ConfigError
from gemmule.losses.shard import TENSOR_PARALLEL
from gemmule.model.config import GemmaConfig
from gemmule.model.gemma import Gemma
from gemmule.model.tensor_parallel import check_degree, parallelize
from gemmule.runtime import torch_compile
from gemmule.runtime.world import World
from gemmule.train.config import RunConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

REPLICATE, SHARD = "dp_replicate", "dp_shard"  # dimensions of a mesh, by torchtitan's names


def data_mesh(world: World, degree: int, device: str, tensor: int = 1) -> "DeviceMesh":
    """The ranks in groups that hold a whole model each, in shards.

    Args:
        world: ranks that have different batches.
        degree: ranks of a group; -1: all of them.
        device: "cpu" or "cuda".
        tensor: tensor-parallel ranks for each of these, which have the same batches.

    Returns:
        A mesh of one dimension where there is one group, else of two: groups, ranks of a group.
        Ranks that follow each other, and so those of one machine, are in one group. Tensor-parallel
        ranks, if there are more than one, are the last dimension.

    Raises:
        ConfigError: when groups of this size do not use every rank.
    """
    from torch.distributed.device_mesh import init_device_mesh

    degree = world.size if degree == -1 else degree
    if world.size % degree:
        raise ConfigError(
            f"parallel.data_parallel_shard_degree = {degree}: {world.size} ranks cannot be divided "
            f"into groups of {degree}; use a divisor of {world.size}, or -1 for one group of all"
        )
    sizes: dict[str, int] = {}
    if degree != world.size:
        sizes[REPLICATE] = world.size // degree
    sizes[SHARD] = degree
    if tensor > 1:
        sizes[TENSOR_PARALLEL] = tensor
    return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def data_ranks(config: RunConfig, world: World) -> World:
    """The ranks of a run, those that compute the same batches as one.

    Raises:
        ConfigError: when they cannot be divided into groups.
    """
    return world.in_groups(world.size // config.data_ranks(world.size))


def is_divided(config: RunConfig, world: World) -> bool:
    """Whether the ranks of a run hold parts of its model."""
    parallel = config.parallel
    return world.size > 1 and (
        parallel.tensor_parallel_degree > 1 or parallel.data_parallel_shard_degree != 1
    )


def check_sharding(config: RunConfig, shapes: Iterable[GemmaConfig], world: World) -> None:
    """Refuses what shards cannot do.

    Args:
        config: settings of the run.
        shapes: models that its ranks divide.
        world: all ranks of the run.

    Raises:
        ConfigError: saying what to do instead.
    """
    for shape in shapes:
        check_degree(shape, config.parallel.tensor_parallel_degree)
    if not is_divided(config, world):
        return
    for name, wanted in (
        ("adapter", config.adapter),
        ("evaluation.memorization", config.evaluation.memorization),
    ):
        if wanted is not None:
            raise ConfigError(
                f"{name} needs whole weights on every rank: set "
                "parallel.data_parallel_shard_degree = 1 and parallel.tensor_parallel_degree = 1, "
                "or leave it out"
            )


def rank_mesh(config: RunConfig, world: World) -> "DeviceMesh":
    """The ranks of a run that divide its model, as the settings say.

    Raises:
        ConfigError: as `data_mesh` does.
    """
    parallel = config.parallel
    return data_mesh(
        data_ranks(config, world),
        parallel.data_parallel_shard_degree,
        config.runtime.device,
        parallel.tensor_parallel_degree,
    )


def divide(model: Gemma, mesh: "DeviceMesh", *, compiled: bool, half: bool) -> None:
    """Divides a model over ranks, in place, and compiles its blocks on the way.

    Args:
        model: model on the CPU; each unit is moved to the device.
        mesh: mesh that `data_mesh` returned.
        compiled: whether to compile.
        half: as in `shard`.
    """
    assert mesh.mesh_dim_names is not None
    if TENSOR_PARALLEL in mesh.mesh_dim_names:
        parallelize(model, mesh[TENSOR_PARALLEL])
    if compiled:
        torch_compile.compile_blocks(model.layers)
    shard(model, mesh, half=half)


def shard(model: Gemma, mesh: "DeviceMesh", *, half: bool = False) -> None:
    """Divides a model's parameters over ranks, in place; they become DTensors.

    Each block is a unit, whose weights are gathered before its forward and its backward pass. The
    rest, tied embedding and final norm, is another: its weights stay gathered in between, since the
    chunked losses read the head outside of the model. Gradients are added up over all ranks, not
    averaged: the loop divides by the denominator of the whole step.

    Works on the meta device too. Activation checkpointing and compiling of blocks come before,
    optimizers and `state_dict` after.

    Args:
        model: a language model of any size.
        mesh: mesh of one dimension, the ranks that share the weights; or of two, where the groups
            along the first hold the same. The last dimension may be that of tensor-parallel ranks,
            which a model that `parallelize` (model/tensor_parallel.py) has divided has in common.
        half: whether blocks compute in bfloat16, and gather their weights so; gradients are added
            in fp32, and the shards stay what they are.
    """
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    same = MixedPrecisionPolicy()
    halves = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    assert mesh.mesh_dim_names is not None
    if TENSOR_PARALLEL in mesh.mesh_dim_names:
        mesh = mesh[tuple(n for n in mesh.mesh_dim_names if n != TENSOR_PARALLEL)]
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=halves if half else same)
    fully_shard(model, mesh=mesh, mp_policy=same, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Without it the factor becomes an operation that gloo does not have.
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "hidden_states")


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Evaluates a model that may be sharded: gives its gathered weights back at the end."""
    try:
        yield
    finally:
        if hasattr(model, "reshard"):  # by `shard`
            model.reshard()  # type: ignore[operator]


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has divided the model up."""
    return any(map(is_shard, model.parameters()))


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is divided over ranks, a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This rank's shard, in the same memory; a tensor that is not divided itself."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be divided, gathered from the ranks, all of which call this."""
    return tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def divided(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which each rank has, divided over ranks as another of its shape."""
    if not is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None)


def local_square(model: nn.Module, world: World) -> float:
    """This rank's part of the squared norm of a sharded model's gradient, summed in fp64.

    An entry that several ranks hold is counted by each in equal parts, so that the sum over all
    ranks is right for every mesh.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    squares = [local(g).double().square().sum() / _copies(g, world) for g in gradients]
    return float(torch.stack(squares).sum()) if squares else 0.0


def _copies(tensor: Tensor, world: World) -> float:
    """How many ranks hold each entry, for each part of a batch that is different.

    Below 1 where tensor-parallel ranks, which `world` counts as one, divide a tensor.
    """
    if not is_shard(tensor):
        return world.size
    sizes, placements = tensor.device_mesh.shape, tensor.placements  # type: ignore[attr-defined]
    parts = math.prod(n for n, p in zip(sizes, placements, strict=True) if not p.is_replicate())
    return world.size / parts


def sum_gradients(model: nn.Module) -> None:
    """Adds up the gradients of ranks that hold the same weights."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
