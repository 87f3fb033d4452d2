"""Muon (Jordan et al., 2024), batched over matrices of one shape and in a chosen dtype.

torch.optim.Muon, which the tests compare it with, takes matrices one by one and always in bfloat16;
on processors without bfloat16 matrix units that costs up to half of a training step.

Of matrices in shards, sharded_matrices.py orthogonalizes the whole ones.

Shapes: M matrices of R rows and C columns.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gemmule.train.newton_schulz import orthogonalize
from gemmule.train.sharding import is_shard, local


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, scaled to AdamW's typical update (arXiv 2502.16982).

    Args:
        params: matrices.
        lr: learning rate, comparable with AdamW's.
        momentum: decay rate of the running mean of gradients.
        weight_decay: decoupled weight decay.
        dtype: type that the orthogonalization computes in.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        for group in self.param_groups:
            together: dict[Any, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                if is_shard(p):
                    together[p.shape, p.device_mesh, p.placements].append(p)
                else:
                    together[min(p.shape), max(p.shape)].append(p)
            for params in together.values():
                self._step_group(params, group)

    def _step_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        first = params[0]
        directions = []
        for p in params:
            grad, state = p.grad, self.state[p]
            assert grad is not None  # step() leaves the others out
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            grad, buffer = local(grad), local(state["momentum_buffer"])
            buffer.lerp_(grad, 1 - group["momentum"])
            direction = torch.lerp(grad, buffer, group["momentum"]).to(self.dtype)
            directions.append(direction if is_shard(p) else _lying(direction))
        stacked = torch.stack(directions)
        if is_shard(first):
            from gemmule.train.sharded_matrices import orthogonalize_shards

            updates = orthogonalize_shards(stacked, first).to(first.dtype)
        else:
            updates = orthogonalize(stacked).to(first.dtype)
        # An orthogonal matrix's entries have root mean square 1 / sqrt(longer side).
        scale = 0.2 * max(first.shape) ** 0.5
        for p, update in zip(params, updates, strict=True):
            mine = local(p)
            mine.mul_(1 - group["lr"] * group["weight_decay"])
            turned = update if mine.shape == update.shape else update.mT
            mine.add_(turned, alpha=-group["lr"] * scale)


def _lying(matrix: Tensor) -> Tensor:
    """The matrix, or its transpose, with no more rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
