"""AdamW, and Muon for hidden matrices."""

import torch
from torch import Tensor, nn

from gemmule.checkpoints.checkpoint import SCORE
from gemmule.train.config import OptimizerConfig
from gemmule.train.muon import Muon
from gemmule.train.sharding import local


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, muon_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """One optimizer, or two with "muon".

    Every group has its peak learning rate in "peak_lr"; the loop sets "lr" from it at each step.
    Weight decay applies to the matrices of the hidden layers only. Frozen parameters are left out.

    Args:
        model: model whose parameters are trained.
        config: settings of the optimizer.
        muon_dtype: type that Muon's orthogonalization computes in.
    """
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if p.requires_grad:
            is_hidden = p.ndim == 2 and "embed" not in name and name != SCORE
            (hidden if is_hidden else rest).append(p)
    groups = [{"params": rest, "lr": config.embedding_learning_rate, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if config.name == "muon":
        optimizers.append(
            Muon(
                hidden,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                dtype=muon_dtype,
            )
        )
    else:
        groups.append(
            {"params": hidden, "lr": config.learning_rate, "weight_decay": config.weight_decay}
        )
    optimizers.append(torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Sets every group's learning rate to a fraction of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def clip_gradients(model: nn.Module, largest: float, norm: float | None = None) -> Tensor:
    """Scales the whole gradient down to norm `largest` if it is larger; returns its norm before.

    Args:
        model: model whose gradients are scaled in place.
        largest: largest norm.
        norm: the gradient's norm where each rank holds a part of it; None: it is computed here.
    """
    if norm is None:
        return nn.utils.clip_grad_norm_(model.parameters(), largest)
    gradients = [local(p.grad) for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, min(1.0, largest / (norm + 1e-6)))  # as torch does
    return torch.tensor(norm)
