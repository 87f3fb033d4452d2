"""A shard of a vocabulary: consecutive rows of a head, the others of which other processes hold.

All ranks of the group have the same tokens and call the same methods in the same order. What they
must agree on are a few numbers per token, such as each shard's log-sum-exp: every rank gets those
of all ranks and combines them by itself, in float64 and in the order of the ranks. Nothing that
depends on the scale of the logits is added up before it is there, so that no maximum has to be
agreed on first, and all ranks compute the same bits.

Shapes: R ranks, C tokens of one chunk, V vocabulary, K ids of a token.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gemmule.errors import ConfigError

TENSOR_PARALLEL = "tp"  # dimension of a mesh: the ranks that compute the same tokens together


def shard_bounds(vocab_size: int, ranks: int) -> list[int]:
    """First row of each rank's shard, and the end of the last: torch.chunk's split, as DTensor's.

    Raises:
        ConfigError: when a rank would have no row.
    """
    size = -(-vocab_size // ranks)
    if size * (ranks - 1) >= vocab_size:
        raise ConfigError(
            f"a vocabulary of {vocab_size} rows cannot be split over {ranks} ranks: in shards of "
            f"{size} the last rank has none; use fewer ranks"
        )
    return [*range(0, vocab_size, size), vocab_size]


@dataclass(frozen=True)
class Shard:
    """One rank's rows of a head.

    Attributes:
        group: the processes that hold the head together.
        rows: number of rows of the whole head, padding included.

    Raises:
        ConfigError: when a rank would have no row.
    """

    group: "dist.ProcessGroup"  # torch can be built without
    rows: int

    def __post_init__(self) -> None:
        shard_bounds(self.rows, self.group.size())

    @staticmethod
    def of(weight_VD: Tensor) -> "tuple[Tensor, Shard] | None":
        """This rank's rows of a head that is a DTensor over tensor-parallel ranks, and their place.

        None for any other tensor.
        """
        mesh = getattr(weight_VD, "device_mesh", None)
        if mesh is None or mesh.mesh_dim_names != (TENSOR_PARALLEL,):
            return None
        return weight_VD.to_local(), Shard(mesh.get_group(), len(weight_VD))  # type: ignore[attr-defined]

    @property
    def rank(self) -> int:
        """Number of this process in the group, from 0."""
        return self.group.rank()

    @property
    def start(self) -> int:
        """Id of the first row."""
        return shard_bounds(self.rows, self.group.size())[self.rank]

    @property
    def stop(self) -> int:
        """Id after that of the last row."""
        return shard_bounds(self.rows, self.group.size())[self.rank + 1]

    @property
    def largest(self) -> int:
        """Number of rows of the largest shard, from which all ranks choose their chunks."""
        return -(-self.rows // self.group.size())

    def widths(self, vocab_size: int | None) -> list[int]:
        """How many rows of each rank are among the first `vocab_size` of the head; None: all.

        Raises:
            ConfigError: when a rank has padding only.
        """
        bounds = shard_bounds(self.rows, self.group.size())
        end = self.rows if vocab_size is None else min(self.rows, vocab_size)
        if bounds[-2] >= end:
            raise ConfigError(
                f"the head's last shard, from row {bounds[-2]} on, is padding only: there are "
                f"{end} real rows; use fewer than {self.group.size()} ranks"
            )
        return [min(stop, end) - start for start, stop in pairwise(bounds)]

    def check(self, rows: int) -> None:
        """Refuses a matrix with another number of rows.

        Raises:
            ConfigError: naming both numbers.
        """
        if rows != self.stop - self.start:
            raise ConfigError(
                f"rank {self.rank} of {self.group.size()} has {rows} rows of a head of "
                f"{self.rows}; its shard has {self.stop - self.start}, from {self.start} on"
            )

    def place(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """For ids of the whole vocabulary: columns in this shard, and whether they are here.

        An id of another shard has the column 0.
        """
        here = (ids >= self.start) & (ids < self.stop)
        return torch.where(here, ids - self.start, 0), here

    def gather(self, *values_C: Tensor) -> tuple[Tensor, ...]:
        """Each of the values as all ranks have it, float64 [R, C], in one collective operation."""
        return self.every(torch.stack([value.double() for value in values_C])).unbind(1)

    def log_shares(self, log_z_RC: Tensor) -> tuple[Tensor, Tensor]:
        """From each shard's log-sum-exp: its log-probability [R, C], and the whole's [C]."""
        log_z_C = log_z_RC.logsumexp(0)
        return log_z_RC - log_z_C, log_z_C

    def mine(self, values_RC: Tensor) -> Tensor:
        """This rank's of all ranks' values, fp32 [C, 1]."""
        return values_RC[self.rank].float()[:, None]

    def add_up(self, x: Tensor) -> Tensor:
        """Replaces `x` by its sum over the ranks."""
        dist.all_reduce(x, group=self.group)
        return x

    def whole(self, x_CV: Tensor, vocab_size: int | None) -> Tensor:
        """The real columns of all shards side by side [..., V], on every rank; see `every`."""
        widths = self.widths(vocab_size)
        padded_CV = F.pad(x_CV, (0, self.largest - x_CV.shape[-1]))
        return torch.cat(
            [x[..., :width] for x, width in zip(self.every(padded_CV), widths, strict=True)], -1
        )

    def every(self, x: Tensor) -> Tensor:
        """The tensors of all ranks, along a new first dimension; they have the same shape.

        Differentiable where all ranks go on with the same computation: each takes the gradient of
        its own tensor.
        """
        return _Every.apply(x, self)  # type: ignore[no-untyped-call]

    def shared(self, x: Tensor) -> Tensor:
        """`x`, which all ranks have; each shard gives a part of its gradient: they are added up."""
        return _Shared.apply(x, self)  # type: ignore[no-untyped-call]


class _Every(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard) -> Tensor:
        ctx.rank = shard.rank
        every = x.new_empty(shard.group.size(), *x.shape)
        dist.all_gather(list(every.unbind()), x.contiguous(), group=shard.group)
        return every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.rank], None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.shard.add_up(grad.clone()), None
