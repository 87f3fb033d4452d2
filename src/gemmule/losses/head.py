"""The output head of a language model: its weight, its soft cap, and the losses computed with it.

Everything goes chunk by chunk of tokens: head product, soft cap and softmax, and each chunk's
gradient is formed while its logits are still there (chunked_head.py). Neither the forward nor the
backward pass holds logits [tokens, vocabulary] beyond one chunk. plain.py has the same losses on
whole logits, for comparison.

Losses are sums over tokens: divide by the number of labels for the mean. Arguments they share:

    x_ND: final hidden states.
    labels_N: ids of the next tokens; IGNORED (-100) ones count for nothing.
    weights_N: weight of each token in the loss, 1 by default.
    compiled: whether the element-wise part of a chunk goes through torch.compile.

Logits have the dtype of the hidden states; everything after them, and the sum of the head's
gradient over chunks, is fp32. Under torch.no_grad() no gradient is formed.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary, K kept ids of a token.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gemmule.errors import ConfigError
from gemmule.losses.chunked_head import (
    ChunkedHead,
    Step,
    capped,
    chunk_size,
    maybe_compiled,
    raw_logits,
    softmax,
    tiles,
)
from gemmule.losses.divergences import DistillationLoss, check_sparse
from gemmule.losses.kernels import (
    LabelTerm,
    TokenValues,
    by_tiles,
    cross_entropy_kernel,
    distillation_kernel,
    label_weights,
    sparse_kernel,
)
from gemmule.losses.likelihood import LogLikelihoods
from gemmule.losses.shard import Shard
from gemmule.losses.sharded import (
    sharded_cross_entropy,
    sharded_distillation,
    sharded_sparse_distillation,
)
from gemmule.losses.soft_cap import soft_cap
from gemmule.losses.sparse_targets import Choice, SparseTargets, joined

REPORT = DistillationLoss()  # the objective of the Gemma 2 report


@dataclass(frozen=True)
class Head:
    """Projection from final hidden states to soft-capped logits.

    Attributes:
        weight_VD: the matrix, in Gemma 2 the tied embedding; of a DTensor that tensor-parallel
            ranks hold together, this rank's rows are taken, and `shard` is set.
        cap: final soft cap; None: no cap.
        vocab_size: number of real rows; the rows after them are padding and get neither probability
            nor gradient. None: all rows are real.
        chunk: tokens per chunk; None: as many as make its logits take about 16 MiB.
        shard: where several processes hold the matrix: which rows are this one's. `weight_VD` has
            only those, ids and `vocab_size` are those of the whole. All ranks compute the same
            losses, from the same tokens; each gets the gradient of its own rows.

    Raises:
        ConfigError: when the number of rows is not the shard's.
    """

    weight_VD: Tensor
    cap: float | None = None
    vocab_size: int | None = None
    chunk: int | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        own = Shard.of(self.weight_VD)
        if own is not None:
            object.__setattr__(self, "weight_VD", own[0])
            object.__setattr__(self, "shard", own[1])
        if self.shard is not None:
            self.shard.check(len(self.weight_VD))

    @property
    def real_VD(self) -> Tensor:
        """The weight without padding rows; of a shard, its own rows."""
        # Not sliced when there is no padding: autograd would copy the gradient.
        return self.weight_VD if self.vocab_size is None else self.weight_VD[: self._real_rows]

    @property
    def num_logits(self) -> int:
        """Number of logits per token, V, over all shards."""
        if self.shard is not None:
            return sum(self.shard.widths(self.vocab_size))
        return len(self.real_VD)

    @property
    def _real_rows(self) -> int | None:
        """Number of real rows in `weight_VD`; None: all."""
        if self.shard is None or self.vocab_size is None:
            return self.vocab_size
        return self.shard.widths(self.vocab_size)[self.shard.rank]

    @property
    def _chunk(self) -> int | None:
        """Tokens per chunk, the same on all ranks."""
        if self.shard is None:
            return self.chunk
        return self.chunk or chunk_size(self.shard.largest)

    @property
    def ids(self) -> slice:
        """The ids whose logits this process computes."""
        start = 0 if self.shard is None else self.shard.start
        return slice(start, start + len(self.real_VD))

    def rows_for(self, other: "Head") -> Tensor:
        """The rows of the ids that `other` has: a whole head is cut where the other is sharded.

        Raises:
            ConfigError: when this head is a shard with other ids.
        """
        if self.ids == other.ids:
            return self.real_VD
        if self.shard is None:
            return self.real_VD[other.ids]
        raise ConfigError(
            f"this process has the ids from {self.ids.start} to {self.ids.stop - 1} of one head "
            f"and from {other.ids.start} to {other.ids.stop - 1} of the other: use the same shard "
            "for both"
        )

    def as_dtype(self, dtype: torch.dtype) -> "Head":
        """The head with its real rows in another dtype, such as that of the hidden states."""
        if self.shard is not None:  # which says where the padding begins
            return dataclasses.replace(self, weight_VD=self.weight_VD.to(dtype))
        return dataclasses.replace(self, weight_VD=self.real_VD.to(dtype), vocab_size=None)

    def logits(self, x_ND: Tensor) -> Tensor:
        """Soft-capped logits [..., V] of final hidden states [..., D], all at once.

        Every rank of a sharded head gets those of all shards.
        """
        if self.shard is None:
            return soft_cap(F.linear(x_ND, self.real_VD), self.cap)
        own_NV = F.linear(self.shard.shared(x_ND), self.real_VD)
        return soft_cap(self.shard.whole(own_NV, self.vocab_size), self.cap)

    def cross_entropy(
        self,
        x_ND: Tensor,
        labels_N: Tensor,
        *,
        weights_N: Tensor | None = None,
        compiled: bool = False,
    ) -> Tensor:
        """Sum over tokens of the next-token loss, nats."""
        loss, _ = self.cross_entropy_by_token(
            x_ND, labels_N, weights_N=weights_N, compiled=compiled
        )
        return loss

    def cross_entropy_by_token(
        self,
        x_ND: Tensor,
        labels_N: Tensor,
        *,
        weights_N: Tensor | None = None,
        compiled: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The sum that `cross_entropy` returns, and each token's part of it, detached, fp32 [N]."""
        kernel = maybe_compiled(cross_entropy_kernel, compiled)
        weight_N = label_weights(labels_N, weights_N)

        def tile(raw_CV: Tensor, _: slice, rows: slice) -> TokenValues:
            label = LabelTerm(raw_CV, labels_N[rows], weight_N[rows], self.cap)
            log_z_C = kernel(raw_CV, weight_N[rows], self.cap)
            label.add_gradient(raw_CV, 1.0)
            return (label.nll(log_z_C),)

        parts: list[Tensor] = []

        def step(raw_CV: Tensor, rows: slice) -> list[Tensor]:
            if self.shard is None:
                (nll_C,) = by_tiles(tile, raw_CV, rows)
            else:
                nll_C = sharded_cross_entropy(
                    self.shard, raw_CV, labels_N[rows], weight_N[rows], self.cap, compiled=compiled
                )
            parts.append(nll_C)
            return [nll_C.sum()]

        (loss,) = self._apply(x_ND, step)
        return loss, torch.cat(parts)

    def distillation(
        self,
        x_ND: Tensor,
        teacher: "Head",
        teacher_x_ND: Tensor,
        labels_N: Tensor,
        loss: DistillationLoss = REPORT,
        *,
        weights_N: Tensor | None = None,
        compiled: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Sum over tokens of (1 - alpha) T^2 divergence(student, teacher) + alpha (-log P_student).

        Both distributions of the divergence are at temperature T. The report's objective (section
        3) is cross-entropy at temperature 1 and alpha 0.

        Args:
            x_ND: the student's hidden states.
            teacher: the teacher's head; its width and soft cap may differ. It gets no gradient.
                Where this head is a shard, the teacher's is the same shard, or whole.
            teacher_x_ND: the teacher's hidden states for the same tokens.
            labels_N: ids of the next tokens; they also decide which tokens count.
            loss: divergence, temperature and alpha.
            weights_N: weight of each token.
            compiled: whether to compile the element-wise part.

        Returns:
            The loss, and the student's next-token loss, detached.

        Raises:
            ConfigError: when the two heads have different numbers of logits, or other shards.
        """
        if self.num_logits != teacher.num_logits:
            raise ConfigError(
                f"the student's head has {self.num_logits} rows and the teacher's "
                f"{teacher.num_logits}: set vocab_size, the number of real ones"
            )
        kernel = maybe_compiled(distillation_kernel, compiled)
        weight_N = label_weights(labels_N, weights_N)
        teacher_x_ND = teacher_x_ND.detach()
        teacher_weight_VD = teacher.rows_for(self).detach().to(teacher_x_ND.dtype)
        teacher_buffer_CV = teacher_x_ND.new_empty(0)
        temperature, alpha = loss.temperature, loss.alpha

        def step(raw_CV: Tensor, rows: slice) -> list[Tensor]:
            nonlocal teacher_buffer_CV
            if len(teacher_buffer_CV) < len(raw_CV):  # the first chunk is the largest
                teacher_buffer_CV = teacher_x_ND.new_empty(raw_CV.shape)
            teacher_raw_CV = torch.mm(
                teacher_x_ND[rows], teacher_weight_VD.T, out=teacher_buffer_CV[: len(raw_CV)]
            )

            if self.shard is not None:
                soft_C, nll_C = sharded_distillation(
                    self.shard, raw_CV, teacher_raw_CV, labels_N[rows], weight_N[rows],
                    self.cap, teacher.cap, loss, compiled=compiled,
                )  # fmt: skip
                return _sums(soft_C, nll_C, alpha)

            def tile(raw_CV: Tensor, part: slice, rows: slice) -> TokenValues:
                label = LabelTerm(raw_CV, labels_N[rows], weight_N[rows], self.cap)
                log_z_C, soft_C = kernel(
                    raw_CV,
                    teacher_raw_CV[part],
                    weight_N[rows],
                    self.cap,
                    teacher.cap,
                    temperature,
                    alpha,
                    loss.divergence.kind,
                    loss.divergence.mix,
                )
                label.add_gradient(raw_CV, alpha)
                return soft_C, label.nll(log_z_C)

            soft_C, nll_C = by_tiles(tile, raw_CV, rows)
            return _sums(soft_C, nll_C, alpha)

        total, hard = self._apply(x_ND, step)
        return total, hard.detach()

    def sparse_distillation(
        self,
        x_ND: Tensor,
        targets: SparseTargets,
        labels_N: Tensor,
        loss: DistillationLoss = REPORT,
        *,
        weights_N: Tensor | None = None,
        compiled: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The loss of `distillation` when only some ids of the teacher's distribution are kept.

        Divergences that need the whole distribution are refused. With a tail, the ids that are not
        kept are one event: the teacher's tail mass against the student's probability of all of
        them.

        Args:
            x_ND: the student's hidden states.
            targets: kept ids of the teacher's distributions, one row per token.
            labels_N: ids of the next tokens; they also decide which tokens count.
            loss: divergence, temperature (that of the targets) and alpha.
            weights_N: weight of each token.
            compiled: whether to compile the element-wise part.

        Returns:
            The loss, and the student's next-token loss, detached.

        Raises:
            ConfigError: for a divergence other than cross-entropy and forward KL, and for targets
                of another temperature or another number of tokens.
        """
        if len(targets) != len(x_ND):
            raise ConfigError(f"there are targets of {len(targets)} tokens and {len(x_ND)} tokens")
        if targets.temperature != loss.temperature:
            raise ConfigError(
                f"the targets have temperature {targets.temperature} and the loss "
                f"{loss.temperature}: they must be equal"
            )
        check_sparse(loss.divergence)
        kernel = maybe_compiled(sparse_kernel, compiled)
        weight_N = label_weights(labels_N, weights_N)
        temperature, alpha = loss.temperature, loss.alpha
        scale = (1.0 - alpha) * temperature

        def tile(raw_CV: Tensor, _: slice, rows: slice) -> TokenValues:
            weight_C = weight_N[rows]
            ids_CK, weight_CK, tail_C, entropy_C = targets.rows(rows)
            label = LabelTerm(raw_CV, labels_N[rows], weight_C, self.cap)
            logit_CK, slope_CK = capped(raw_CV.gather(1, ids_CK), self.cap)
            hot_CK = logit_CK / temperature
            log_z_C, hot_log_z_C, tail_p_C = kernel(
                raw_CV, ids_CK, weight_CK, tail_C, weight_C, self.cap, temperature, alpha
            )
            raw_CV.scatter_add_(1, ids_CK, -scale * weight_CK * slope_CK * weight_C[:, None])
            label.add_gradient(raw_CV, alpha)
            soft_C = (weight_CK * (hot_log_z_C[:, None] - hot_CK)).sum(-1)
            if tail_C is not None:
                soft_C = soft_C - tail_C * tail_p_C.log()
            if loss.divergence.kind == "forward_kl":
                soft_C = soft_C - entropy_C
            return scale * temperature * soft_C * weight_C, label.nll(log_z_C)

        def step(raw_CV: Tensor, rows: slice) -> list[Tensor]:
            if self.shard is None:
                soft_C, nll_C = by_tiles(tile, raw_CV, rows)
            else:
                soft_C, nll_C = sharded_sparse_distillation(
                    self.shard, raw_CV, targets.part(rows), labels_N[rows], weight_N[rows],
                    self.cap, loss, compiled=compiled,
                )  # fmt: skip
            return _sums(soft_C, nll_C, alpha)

        total, hard = self._apply(x_ND, step)
        return total, hard.detach()

    def log_likelihoods(self, x_ND: Tensor, labels_N: Tensor, *, compiled: bool = False) -> Tensor:
        """Log-probability of each label, nats, fp32 [N]; 0 for IGNORED ones.

        Differentiable: autograd passes back what each token weighs in a loss, and the gradient is
        that of a cross-entropy with those weights (likelihood.py).
        """

        def weighted(x_ND: Tensor, weight_VD: Tensor, weights_N: Tensor) -> Tensor:
            head = dataclasses.replace(self, weight_VD=weight_VD)
            return head.cross_entropy(x_ND, labels_N, weights_N=weights_N, compiled=compiled)

        return LogLikelihoods.apply(  # type: ignore[no-untyped-call]
            x_ND,
            self.weight_VD,
            labels_N,
            self.cap,
            self._real_rows,
            self._chunk,
            self.shard,
            weighted,
        )

    def log_mass(self, x_ND: Tensor, in_set_V: Tensor) -> Tensor:
        """Log-probability that the next token is one of a set, nats, fp32 [N]; differentiable.

        Holds one chunk's logits at a time; the backward pass computes them again.

        Args:
            x_ND: final hidden states.
            in_set_V: whether each token is in the set, which is not empty.
        """

        def mass(x_CD: Tensor, weight_VD: Tensor) -> Tensor:
            logits_CV = soft_cap(F.linear(x_CD, weight_VD), self.cap).float()
            inside_C = logits_CV.masked_fill(~in_set_V[self.ids], -torch.inf).logsumexp(-1)
            all_C = logits_CV.logsumexp(-1)
            if self.shard is not None:
                each_RC2 = self.shard.every(torch.stack((inside_C, all_C), -1))
                inside_C, all_C = each_RC2.logsumexp(0).unbind(-1)
            return inside_C - all_C

        weight_VD = self.real_VD.to(x_ND.dtype)
        if self.shard is not None:
            x_ND = self.shard.shared(x_ND)
        chunks = x_ND.split(self._chunk or chunk_size(self.num_logits))
        parts = [checkpoint(mass, x_CD, weight_VD, use_reentrant=False) for x_CD in chunks]
        return torch.cat(parts)

    @torch.no_grad()
    def sparse_targets(
        self, x_ND: Tensor, choose: Choice, *, temperature: float = 1.0
    ) -> SparseTargets:
        """What `choose` keeps of the distribution of each token.

        Args:
            x_ND: final hidden states of a teacher.
            choose: selection of ids, as in `lambda p_CV: sample(p_CV, 256)`.
            temperature: temperature of the softmax.
        """
        kept = [
            choose(p_CV if self.shard is None else self.shard.whole(p_CV, self.vocab_size))
            for p_CV in self._probabilities(x_ND, temperature)
        ]
        return dataclasses.replace(joined(kept), temperature=temperature)

    @torch.no_grad()
    def entropies(self, x_ND: Tensor) -> Tensor:
        """Entropy of each token's distribution at temperature 1, nats, fp32 [N]."""
        tiles_C = [torch.special.entr(p_CV).sum(-1) for p_CV in self._probabilities(x_ND, 1.0)]
        entropy_N = torch.cat(tiles_C)
        return entropy_N if self.shard is None else self.shard.add_up(entropy_N)

    def _probabilities(self, x_ND: Tensor, temperature: float) -> Iterator[Tensor]:
        """Probabilities [C, V] of a tile of tokens at a time, in order; a shard has its ids'."""
        weight_VD = self.real_VD.to(x_ND.dtype)
        width = len(weight_VD) if self.shard is None else self.shard.largest
        for rows, raw_CV in raw_logits(x_ND, weight_VD, self._chunk):
            for part, _ in tiles(rows, width):
                logits_CV = raw_CV[part].float()
                if self.cap is not None:
                    logits_CV.div_(self.cap).tanh_().mul_(self.cap)  # in place: raw ones are done
                p_CV, log_z_C1 = softmax(
                    logits_CV / temperature, self.cap and self.cap / temperature
                )
                if self.shard is not None:
                    log_p_RC, _ = self.shard.log_shares(*self.shard.gather(log_z_C1[:, 0]))
                    p_CV *= self.shard.mine(log_p_RC.exp())
                yield p_CV

    def _apply(self, x_ND: Tensor, step: Step) -> tuple[Tensor, ...]:
        weight_VD = self.weight_VD if torch.is_grad_enabled() else self.weight_VD.detach()
        return ChunkedHead.apply(  # type: ignore[no-untyped-call]
            x_ND, weight_VD, self._real_rows, self._chunk, step, self.shard
        )


def _sums(soft_C: Tensor, nll_C: Tensor, alpha: float) -> list[Tensor]:
    """A chunk's loss, and the next-token loss that is reported with it."""
    nll = nll_C.sum()
    return [soft_C.sum() + alpha * nll, nll]
