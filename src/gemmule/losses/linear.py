"""Losses from hidden states and heads, without the logits of a whole batch ever existing.

The head's product, the soft cap and the softmax are done chunk by chunk of tokens, and each
chunk's gradient is formed while its logits are still there (chunked.py), so neither the forward
nor the backward pass holds [tokens, vocabulary] beyond one chunk. Pure functions, with autograd;
plain.py has the same losses on whole logits, to compare with.

All are sums over tokens: divide by the number that count for the mean. What they share:

    x_ND, weight_VD: final hidden states, and the head (the tied embedding).
    target_N: ids of the next tokens; IGNORED (-100) ones count for nothing.
    cap: the final soft cap, applied inside; None for none.
    token_weight_N: what each token counts, 1 by default.
    vocab: the real vocabulary; rows of the heads from there on are padding and take no
        probability and no gradient. None: all rows are real.
    chunk: tokens per chunk; by default so that its logits take about 16 MiB.
    compiled: whether the chunk's element-wise part goes through torch.compile.

Logits are in the dtype of the hidden states; all that follows, and the sum of the head's gradient
over chunks, is in fp32.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary, K kept ids of a token.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gemmule.errors import ConfigError
from gemmule.losses.chunked_head import ChunkedHead, capped, maybe_compiled, softmax, tiles, total
from gemmule.losses.divergences import CROSS_ENTROPY, Divergence, Kind
from gemmule.losses.formulas import SMALLEST, Distribution, divergence_and_gradient
from gemmule.losses.sparse_targets import SparseTargets

IGNORED = -100
SPARSE_KINDS = ("cross_entropy", "forward_kl")

Figures = tuple[Tensor, ...]  # of each token of a tile, [C]
TileStep = Callable[[Tensor, slice, slice], Figures]


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    target_N: Tensor,
    *,
    cap: float | None,
    token_weight_N: Tensor | None = None,
    vocab: int | None = None,
    chunk: int | None = None,
    compiled: bool = False,
) -> Tensor:
    """Sum over tokens of the next-token loss, in nats; arguments as in the module's text."""
    kernel = maybe_compiled(_cross_entropy_kernel, compiled)
    keep_N = _keep(target_N, token_weight_N)

    def tile(raw_CV: Tensor, _: slice, rows: slice) -> Figures:
        hard = _Target(raw_CV, target_N[rows], keep_N[rows], cap)
        log_z_C = kernel(raw_CV, keep_N[rows], cap)
        hard.add_gradient(raw_CV, 1.0)
        return (hard.nll(log_z_C),)

    def step(raw_CV: Tensor, rows: slice) -> list[Tensor]:
        return [figure_C.sum() for figure_C in _by_tiles(tile, raw_CV, rows)]

    (loss,) = ChunkedHead.apply(x_ND, weight_VD, vocab, chunk, step)  # type: ignore[no-untyped-call]
    return loss


def linear_distillation(
    x_ND: Tensor,
    weight_VD: Tensor,
    teacher_x_ND: Tensor,
    teacher_weight_VD: Tensor,
    target_N: Tensor,
    *,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float = 1.0,
    alpha: float = 0.0,
    divergence: Divergence = CROSS_ENTROPY,
    token_weight_N: Tensor | None = None,
    vocab: int | None = None,
    chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of (1 - alpha) T^2 divergence(student, teacher) + alpha (-log P_student).

    Both distributions of the divergence are at temperature T. The report's objective (section 3)
    is cross-entropy at temperature 1 and alpha 0. Teacher arguments as the student's; widths and
    caps may differ. `target_N` also says which tokens count. No gradient flows to the teacher.
    Other arguments as in the module's text.

    Returns:
        The loss, and beside it the next-token loss of the student (not trained on unless alpha).

    Raises:
        ConfigError: when the heads have unlike numbers of rows and no `vocab` says which are real.
    """
    rows_of_heads = len(weight_VD[:vocab]), len(teacher_weight_VD[:vocab])
    if rows_of_heads[0] != rows_of_heads[1]:
        raise ConfigError(
            f"the student's head has {rows_of_heads[0]} rows and the teacher's {rows_of_heads[1]}: "
            "give vocab, the number of real ones"
        )
    kernel = maybe_compiled(_distillation_kernel, compiled)
    keep_N = _keep(target_N, token_weight_N)
    teacher_x_ND = teacher_x_ND.detach()
    teacher_weight_VD = teacher_weight_VD.detach()[:vocab].to(teacher_x_ND.dtype)
    teacher_buffer_CV = teacher_x_ND.new_empty(0)

    def step(raw_CV: Tensor, rows: slice) -> list[Tensor]:
        nonlocal teacher_buffer_CV
        if len(teacher_buffer_CV) < len(raw_CV):  # the first chunk is the largest
            teacher_buffer_CV = teacher_x_ND.new_empty(raw_CV.shape)
        teacher_raw_CV = torch.mm(
            teacher_x_ND[rows], teacher_weight_VD.T, out=teacher_buffer_CV[: len(raw_CV)]
        )

        def tile(raw_CV: Tensor, part: slice, rows: slice) -> Figures:
            hard = _Target(raw_CV, target_N[rows], keep_N[rows], cap)
            log_z_C, soft_C = kernel(
                raw_CV,
                teacher_raw_CV[part],
                keep_N[rows],
                cap,
                teacher_cap,
                temperature,
                alpha,
                divergence.kind,
                divergence.mix,
            )
            hard.add_gradient(raw_CV, alpha)
            return soft_C, hard.nll(log_z_C)

        soft_C, nll_C = _by_tiles(tile, raw_CV, rows)
        nll = nll_C.sum()
        return [soft_C.sum() + alpha * nll, nll]

    loss, hard = ChunkedHead.apply(x_ND, weight_VD, vocab, chunk, step)  # type: ignore[no-untyped-call]
    return loss, hard.detach()


def linear_sparse_distillation(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets: SparseTargets,
    target_N: Tensor,
    *,
    cap: float | None,
    alpha: float = 0.0,
    divergence: Divergence = CROSS_ENTROPY,
    token_weight_N: Tensor | None = None,
    vocab: int | None = None,
    chunk: int | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """As linear_distillation, where of the teacher's distribution only some ids are known.

    The temperature T is the one that the targets were made at. Divergences that need the
    teacher's whole distribution are refused. With a tail, the ids that are not kept are one event:
    its probability is the teacher's mass outside, against the student's.

    Returns:
        The loss, and beside it the next-token loss of the student (not trained on unless alpha).

    Raises:
        ConfigError: for a divergence other than cross-entropy and forward KL, and for targets of
            another number of tokens.
    """
    if len(targets) != len(x_ND):
        raise ConfigError(f"there are targets of {len(targets)} tokens and {len(x_ND)} tokens")
    check_sparse(divergence)
    kernel = maybe_compiled(_sparse_kernel, compiled)
    keep_N = _keep(target_N, token_weight_N)
    temperature = targets.temperature
    scale = (1.0 - alpha) * temperature

    def tile(raw_CV: Tensor, _: slice, rows: slice) -> Figures:
        keep_C = keep_N[rows]
        ids_CK, weight_CK, tail_C, entropy_C = targets.rows(rows)
        hard = _Target(raw_CV, target_N[rows], keep_C, cap)
        logit_CK, slope_CK = capped(raw_CV.gather(1, ids_CK), cap)
        hot_CK = logit_CK / temperature
        log_z_C, hot_log_z_C, tail_p_C = kernel(
            raw_CV, ids_CK, weight_CK, tail_C, keep_C, cap, temperature, alpha
        )
        raw_CV.scatter_add_(1, ids_CK, -scale * weight_CK * slope_CK * keep_C[:, None])
        hard.add_gradient(raw_CV, alpha)
        soft_C = (weight_CK * (hot_log_z_C[:, None] - hot_CK)).sum(-1)
        if tail_C is not None:
            soft_C = soft_C - tail_C * tail_p_C.log()
        if divergence.kind == "forward_kl":
            soft_C = soft_C - entropy_C
        return scale * temperature * soft_C * keep_C, hard.nll(log_z_C)

    def step(raw_CV: Tensor, rows: slice) -> list[Tensor]:
        soft_C, nll_C = _by_tiles(tile, raw_CV, rows)
        nll = nll_C.sum()
        return [soft_C.sum() + alpha * nll, nll]

    loss, hard = ChunkedHead.apply(x_ND, weight_VD, vocab, chunk, step)  # type: ignore[no-untyped-call]
    return loss, hard.detach()


def check_sparse(divergence: Divergence) -> None:
    """Refuses a divergence that sparse targets do not allow.

    Raises:
        ConfigError: for all but cross-entropy and forward KL.
    """
    if divergence.kind not in SPARSE_KINDS:
        raise ConfigError(
            f"{divergence.kind} needs the teacher's whole distribution; with sparse targets there "
            f"are: {', '.join(SPARSE_KINDS)}"
        )


# Kernels: element-wise work and sums over the vocabulary. Each leaves the gradient with respect
# to the raw logits in their place.


def _cross_entropy_kernel(raw_CV: Tensor, keep_C: Tensor, cap: float | None) -> Tensor:
    """Log-sum-exp of each token; the gradient but for its part at the target."""
    logits, slope = capped(raw_CV, cap)
    p, log_z_C1 = softmax(logits, cap)
    raw_CV.copy_(p * slope * keep_C[:, None])
    return log_z_C1.squeeze(-1)


def _distillation_kernel(
    raw_CV: Tensor,
    teacher_raw_CV: Tensor,
    keep_C: Tensor,
    cap: float | None,
    teacher_cap: float | None,
    temperature: float,
    alpha: float,
    kind: Kind,
    mix: float,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp at temperature 1, and soft loss; the gradient but for its part at the target."""
    logits, slope = capped(raw_CV, cap)
    teacher_logits, _ = capped(teacher_raw_CV, teacher_cap)
    centred = kind != "cross_entropy"
    student, log_z_C1 = _distribution(logits / temperature, cap and cap / temperature, centred)
    teacher, _ = _distribution(
        teacher_logits / temperature, teacher_cap and teacher_cap / temperature, centred
    )
    soft_C, soft_grad_CV = divergence_and_gradient(kind, mix, student, teacher)
    # Temperature squared keeps the gradient's size, as Hinton et al. (arXiv 1503.02531) do; one
    # of the two factors cancels against d(logit / temperature).
    grad_CV = (1.0 - alpha) * temperature * soft_grad_CV
    p = student.p_CV
    if temperature != 1.0:
        p, log_z_C1 = softmax(logits, cap)
    if alpha:
        grad_CV = grad_CV + alpha * p
    loss_C = (1.0 - alpha) * temperature**2 * soft_C
    raw_CV.copy_(grad_CV * slope * keep_C[:, None])
    return log_z_C1.squeeze(-1), loss_C * keep_C


def _distribution(
    logits_CV: Tensor, bound: float | None, centred: bool
) -> tuple[Distribution, Tensor]:
    """The softmax, and beside it the log-sum-exp [C, 1] of the logits as they came.

    Centred, the largest logit is taken off, and log-probabilities near 0 keep their digits.
    """
    if not centred:
        p_CV, log_z_C1 = softmax(logits_CV, bound)
        return Distribution(logits_CV, log_z_C1, p_CV), log_z_C1
    top_C1 = logits_CV.amax(-1, keepdim=True)
    logits_CV = logits_CV - top_C1
    p_CV, log_z_C1 = softmax(logits_CV, 0.0)
    return Distribution(logits_CV, log_z_C1, p_CV), log_z_C1 + top_C1


def _sparse_kernel(
    raw_CV: Tensor,
    ids_CK: Tensor,
    weight_CK: Tensor,
    tail_C: Tensor | None,
    keep_C: Tensor,
    cap: float | None,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp at temperatures 1 and T, and the student's mass outside the ids.

    The gradient is complete but for what ids and target take from it.
    """
    logits, slope = capped(raw_CV, cap)
    p, log_z_C1 = softmax(logits / temperature, cap and cap / temperature)
    hot_log_z_C1, total_C1 = log_z_C1, weight_CK.sum(-1, keepdim=True)
    tail_p_C1 = torch.zeros_like(total_C1)
    if tail_C is None:
        grad_CV = (1.0 - alpha) * temperature * (total_C1 * p)
    else:
        # Summed on its own: one minus the kept ids' mass would lose a small tail's digits.
        outside_CV = p.scatter(1, ids_CK, 0.0)
        tail_p_C1 = total(outside_CV)[:, None].clamp(min=SMALLEST)
        tail_C1 = tail_C[:, None]
        grad_CV = (total_C1 + tail_C1) * p - tail_C1 / tail_p_C1 * outside_CV
        grad_CV = (1.0 - alpha) * temperature * grad_CV
    if temperature != 1.0:
        p, log_z_C1 = softmax(logits, cap)
    if alpha:
        grad_CV = grad_CV + alpha * p
    raw_CV.copy_(grad_CV * slope * keep_C[:, None])
    return log_z_C1.squeeze(-1), hot_log_z_C1.squeeze(-1), tail_p_C1.squeeze(-1)


class _Target:
    """The next token's own logit and slope, read before the gradient takes the logits' place."""

    def __init__(self, raw_CV: Tensor, target_C: Tensor, keep_C: Tensor, cap: float | None) -> None:
        self.index_C1 = target_C.clamp(min=0)[:, None]
        self.keep_C = keep_C
        self.logit_C1, self.slope_C1 = capped(raw_CV.gather(1, self.index_C1), cap)

    def nll(self, log_z_C: Tensor) -> Tensor:
        """Negative log-likelihood of each token."""
        return (log_z_C - self.logit_C1[:, 0]) * self.keep_C

    def add_gradient(self, grad_CV: Tensor, alpha: float) -> None:
        """What the targets take from the gradient of alpha times their loss."""
        if alpha:
            hit_C1 = self.slope_C1 * self.keep_C[:, None]
            grad_CV.scatter_add_(1, self.index_C1, -alpha * hit_C1)


def _keep(target_N: Tensor, token_weight_N: Tensor | None) -> Tensor:
    """What each token counts [N], fp32."""
    keep_N = (target_N != IGNORED).float()
    return keep_N if token_weight_N is None else keep_N * token_weight_N.detach().float()


def _by_tiles(tile: TileStep, raw_CV: Tensor, rows: slice) -> list[Tensor]:
    """Takes a chunk through `tile`, which leaves gradients in place of fp32 raw logits.

    Returns:
        What it returned, of all tokens of the chunk.
    """
    found: list[Figures] = []
    for part, tokens in tiles(rows, raw_CV.shape[1]):
        work_CV = raw_CV[part].float()  # the same memory where it is fp32 already
        found.append(tile(work_CV, part, tokens))
        if work_CV.dtype != raw_CV.dtype:
            raw_CV[part] = work_CV
    return [torch.cat(figure) for figure in zip(*found, strict=True)]
