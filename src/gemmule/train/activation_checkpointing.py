"""Activation checkpointing: memory for time (Chen et al., arXiv 1604.06174).

A block keeps its input, or its input and the outputs of its linear layers, and computes the rest
again in the backward pass. The result is the same to the last bit.
"""

from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from gemmule.model.gemma import Block

Mode = Literal["none", "selective", "full"]
_WITHOUT_DROPOUT: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}


def checkpoint_blocks(blocks: Iterable[nn.Module], mode: Mode) -> None:
    """Makes blocks recompute their activations, in place; before they are compiled or sharded.

    Args:
        blocks: blocks of a model.
        mode: "full" keeps the input of each block, and costs a forward pass of it; "selective"
            also keeps the outputs of its linear layers, which hold most of the work: norms, gates
            and attention are computed again. "none" changes nothing.
    """
    for block in blocks:
        # A class instead of a wrapping module: names of parameters stay, and copies work.
        block.__class__ = {"none": Block, "selective": SelectiveBlock, "full": FullBlock}[mode]


class FullBlock(Block):
    """A block that keeps its input."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Block's: around the hooks of a sharded block, and around a compiled one."""
        if not torch.is_grad_enabled():
            return cast(Tensor, super().__call__(*args, **kwargs))
        return cast(Tensor, checkpoint(super().__call__, *args, **_WITHOUT_DROPOUT, **kwargs))


class SelectiveBlock(Block):
    """A block that keeps its input and the outputs of its linear layers."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Block's."""
        if not torch.is_grad_enabled():
            return cast(Tensor, super().__call__(*args, **kwargs))
        return cast(
            Tensor,
            checkpoint(super().__call__, *args, context_fn=_contexts, **_WITHOUT_DROPOUT, **kwargs),
        )


def _contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    linear = op == torch.ops.aten.mm.default
    return CheckpointPolicy.MUST_SAVE if linear else CheckpointPolicy.PREFER_RECOMPUTE
