"""Muon's orthogonalization for matrices that are divided over ranks.

The iteration needs whole matrices: on a shard it computes something else. The ranks therefore
exchange their parts, so that each has some of the matrices whole, and exchange the results back.

Shapes: M matrices of R rows and C columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from gemmule.train.newton_schulz import orthogonalize
from gemmule.train.sharding import local


def orthogonalize_shards(shards: Tensor, like: Tensor) -> Tensor:
    """`orthogonalize` for matrices of which each rank holds a part; returns the same parts.

    Args:
        shards: this rank's parts of M matrices, stacked.
        like: a parameter of the matrices' shape, divided in the same way.
    """
    assert isinstance(like, DTensor)
    shape = torch.Size((len(shards), *like.shape))
    parts = [p if p.is_replicate() else Shard(p.dim + 1) for p in like.placements]  # type: ignore[attr-defined]
    # Each rank along a divided dimension gets some matrices, whole.
    wholes = [Replicate() if p.is_replicate() else Shard(0) for p in like.placements]
    whole = _redistributed(shards, like.device_mesh, parts, wholes, shape)
    if like.shape[0] > like.shape[1]:
        whole = orthogonalize(whole.mT).mT
    else:
        whole = orthogonalize(whole)
    return _redistributed(whole, like.device_mesh, wholes, parts, shape)


def _redistributed(
    mine: Tensor,
    mesh: DeviceMesh,
    before: Sequence[Placement],
    after: Sequence[Placement],
    shape: torch.Size,
) -> Tensor:
    """This rank's part of a stack [M, R, C] that is divided in another way."""
    stride = (shape[1] * shape[2], shape[2], 1)
    stack = DTensor.from_local(
        mine.contiguous(), mesh, before, run_check=False, shape=shape, stride=stride
    )
    if mesh.device_type == "cpu":  # DTensor does so by itself, with a warning
        stack = stack.redistribute(placements=[Replicate()] * mesh.ndim)
    return local(stack.redistribute(placements=after))
