"""Kernels of the chunked losses, and what they share.

A kernel does the element-wise work and the sums over the vocabulary for one tile of tokens. It gets
fp32 raw logits (before the soft cap) and leaves the gradient of the loss with respect to them in
their place, except for the terms at the label and at the teacher's kept ids, which are added with a
scatter afterwards.

Shapes: N tokens, C tokens of one tile or chunk, V vocabulary, K kept ids of a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gemmule.losses.chunked_head import capped, softmax, tiles, total
from gemmule.losses.divergences import Kind
from gemmule.losses.formulas import SMALLEST, Distribution, divergence_and_gradient
from gemmule.losses.labels import IGNORED
from gemmule.losses.shard import Shard

TokenValues = tuple[Tensor, ...]  # each [C]: one value per token of a tile
TileStep = Callable[[Tensor, slice, slice], TokenValues]


def cross_entropy_kernel(raw_CV: Tensor, weight_C: Tensor, cap: float | None) -> Tensor:
    """Log-sum-exp of each token [C]; the gradient lacks its term at the label."""
    logits, slope = capped(raw_CV, cap)
    p, log_z_C1 = softmax(logits, cap)
    raw_CV.copy_(p * slope * weight_C[:, None])
    return log_z_C1.squeeze(-1)


def distillation_kernel(
    raw_CV: Tensor,
    teacher_raw_CV: Tensor,
    weight_C: Tensor,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float,
    alpha: float,
    kind: Kind,
    mix: float,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp at temperature 1 and soft loss, [C] each; the gradient lacks its label term."""
    centered = kind != "cross_entropy"
    student, log_z_C1, logits, slope = distribution(raw_CV, cap, temperature, centered)
    teacher = distribution(teacher_raw_CV, teacher_cap, temperature, centered)[0]
    soft_C, soft_grad_CV = divergence_and_gradient(kind, mix, student, teacher)
    # The factor T^2 keeps the gradient's scale (Hinton et al., arXiv 1503.02531); one T
    # cancels against d(logit / T).
    grad_CV = (1.0 - alpha) * temperature * soft_grad_CV
    p = student.p_CV
    if temperature != 1.0:
        p, log_z_C1 = softmax(logits, cap)
    if alpha:
        grad_CV = grad_CV + alpha * p
    loss_C = (1.0 - alpha) * temperature**2 * soft_C
    raw_CV.copy_(grad_CV * slope * weight_C[:, None])
    return log_z_C1.squeeze(-1), loss_C * weight_C


def distribution(
    raw_CV: Tensor, cap: float | None, temperature: float, centered: bool
) -> tuple[Distribution, Tensor, Tensor, Tensor]:
    """The softmax at a temperature.

    When `centered`, the largest logit is subtracted first: log-probabilities near 0 stay accurate.

    Returns:
        The distribution, the log-sum-exp [C, 1] at that temperature, and what `capped` returns:
        the logits at temperature 1, and their slope.
    """
    logits, slope = capped(raw_CV, cap)
    hot_CV = logits / temperature
    if not centered:
        p_CV, log_z_C1 = softmax(hot_CV, cap and cap / temperature)
        return Distribution(hot_CV, log_z_C1, p_CV), log_z_C1, logits, slope
    top_C1 = hot_CV.amax(-1, keepdim=True)
    hot_CV = hot_CV - top_C1
    p_CV, log_z_C1 = softmax(hot_CV, 0.0)
    return Distribution(hot_CV, log_z_C1, p_CV), log_z_C1 + top_C1, logits, slope


def sparse_kernel(
    raw_CV: Tensor,
    ids_CK: Tensor,
    weight_CK: Tensor,
    tail_C: Tensor | None,
    weight_C: Tensor,
    cap: float | None,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp at temperatures 1 and T, and the student's probability outside the kept ids.

    Each is [C]. The gradient lacks its terms at the kept ids and at the label.
    """
    logits, slope = capped(raw_CV, cap)
    p, log_z_C1 = softmax(logits / temperature, cap and cap / temperature)
    hot_log_z_C1, total_C1 = log_z_C1, weight_CK.sum(-1, keepdim=True)
    tail_p_C1 = torch.zeros_like(total_C1)
    if tail_C is None:
        grad_CV = (1.0 - alpha) * temperature * (total_C1 * p)
    else:
        # Summed directly: 1 minus the kept probability would lose a small tail's digits.
        outside_CV = p.scatter(1, ids_CK, 0.0)
        tail_p_C1 = total(outside_CV)[:, None].clamp(min=SMALLEST)
        tail_C1 = tail_C[:, None]
        grad_CV = (total_C1 + tail_C1) * p - tail_C1 / tail_p_C1 * outside_CV
        grad_CV = (1.0 - alpha) * temperature * grad_CV
    if temperature != 1.0:
        p, log_z_C1 = softmax(logits, cap)
    if alpha:
        grad_CV = grad_CV + alpha * p
    raw_CV.copy_(grad_CV * slope * weight_C[:, None])
    return log_z_C1.squeeze(-1), hot_log_z_C1.squeeze(-1), tail_p_C1.squeeze(-1)


class LabelTerm:
    """Logit and slope at the label, read before the gradient overwrites the logits.

    In a shard of the vocabulary both are 0 for a label of another shard.
    """

    def __init__(
        self,
        raw_CV: Tensor,
        label_C: Tensor,
        weight_C: Tensor,
        cap: float | None,
        shard: Shard | None = None,
    ) -> None:
        self.index_C1 = label_C.clamp(min=0)[:, None]
        self.weight_C = weight_C
        here_C1: Tensor | None = None
        if shard is not None:
            self.index_C1, here_C1 = shard.place(self.index_C1)
        self.logit_C1, self.slope_C1 = capped(raw_CV.gather(1, self.index_C1), cap)
        if here_C1 is not None:
            self.logit_C1, self.slope_C1 = self.logit_C1 * here_C1, self.slope_C1 * here_C1

    def nll(self, log_z_C: Tensor) -> Tensor:
        """Negative log-likelihood of each label, nats [C], times its weight."""
        return (log_z_C - self.logit_C1[:, 0]) * self.weight_C

    def add_gradient(self, grad_CV: Tensor, alpha: float) -> None:
        """Adds the label's term of the gradient of alpha times the next-token loss."""
        if alpha:
            hit_C1 = self.slope_C1 * self.weight_C[:, None]
            grad_CV.scatter_add_(1, self.index_C1, (-alpha * hit_C1).type_as(grad_CV))


def label_weights(labels_N: Tensor, weights_N: Tensor | None) -> Tensor:
    """Weight of each token in the loss, fp32 [N]: 0 where the label is IGNORED."""
    weight_N = (labels_N != IGNORED).float()
    return weight_N if weights_N is None else weight_N * weights_N.detach().float()


def by_tiles(tile: TileStep, raw_CV: Tensor, rows: slice) -> list[Tensor]:
    """Runs `tile` over a chunk; it leaves gradients in place of the fp32 raw logits.

    Returns:
        The values that `tile` returned, concatenated over the tokens of the chunk.
    """
    values: list[TokenValues] = []
    for part, tokens in tiles(rows, raw_CV.shape[1]):
        work_CV = raw_CV[part].float()  # no copy where it is fp32 already
        values.append(tile(work_CV, part, tokens))
        if work_CV.dtype != raw_CV.dtype:
            raw_CV[part] = work_CV
    return [torch.cat(parts) for parts in zip(*values, strict=True)]
