"""Sparse targets: a teacher's distribution kept at a few ids a token.

Four ways to choose them, each a function of the teacher's probabilities [C, V] at some tokens;
`sparse_targets` applies one to all tokens, chunk by chunk, from hidden states and head.

- `sample`: random draws. On average over draws the loss and its gradient are those of the whole
  distribution (Random Sampling KD, arXiv 2503.16870; Gemma 3 keeps 256 draws).
- `top_k`, `top_p`: the likeliest ids, renormalised. Biased: the student learns to give the rest
  nothing.
- `top_k_with_tail`: the likeliest ids as they are, and the rest's mass as one bucket.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary, K kept ids of a token.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.errors import ConfigError
from gemmule.losses.chunked_head import chunk_size, softmax, tiles


@dataclass(frozen=True)
class SparseTargets:
    """What is kept of a teacher's next-token distributions.

    Attributes:
        ids_NK: kept ids, int64; different from one another where there is a tail.
        weight_NK: what each id weighs, fp32. An entry of weight 0 is padding, whatever its id.
        entropy_N: entropy in nats, fp32, that forward KL subtracts from the cross-entropy: of the
            teacher's whole distribution for samples, of the kept one otherwise.
        tail_N: the teacher's mass outside the ids as one bucket, fp32; None where there is none.
        temperature: of the teacher's softmax; the student's has to be the same.
    """

    ids_NK: Tensor
    weight_NK: Tensor
    entropy_N: Tensor
    tail_N: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.ids_NK)

    def to(self, device: torch.device | str) -> "SparseTargets":
        """The same on another device."""
        tail_N = None if self.tail_N is None else self.tail_N.to(device)
        return SparseTargets(
            self.ids_NK.to(device),
            self.weight_NK.to(device),
            self.entropy_N.to(device),
            tail_N,
            self.temperature,
        )

    def part(self, rows: slice) -> "SparseTargets":
        """The targets of some tokens."""
        return SparseTargets(
            self.ids_NK[rows],
            self.weight_NK[rows],
            self.entropy_N[rows],
            None if self.tail_N is None else self.tail_N[rows],
            self.temperature,
        )

    def rows(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Ids, weights, tail and entropy of some tokens; padding points at the first id."""
        ids_CK, weight_CK = self.ids_NK[rows].long(), self.weight_NK[rows].float()
        ids_CK = torch.where(weight_CK == 0, ids_CK[:, :1], ids_CK)
        tail_C = None if self.tail_N is None else self.tail_N[rows].float()
        return ids_CK, weight_CK, tail_C, self.entropy_N[rows].float()


Choice = Callable[[Tensor], SparseTargets]


def sample(
    p_CV: Tensor,
    draws: int,
    *,
    proposal: float = 1.0,
    renormalise: bool = False,
    generator: torch.Generator | None = None,
    uniform_CK: Tensor | None = None,
) -> SparseTargets:
    """Draws with replacement from probabilities in proportion to p^proposal.

    An id drawn n times weighs n / draws times the ratio of its probability to the proposal's: an
    unbiased estimate of the distribution, whatever the proposal. Below 1 the proposal favours rare
    ids.

    Args:
        p_CV: the teacher's probabilities.
        draws: how many; the ids kept are those that differ.
        proposal: power, above 0. At 1 weights are shares of draws.
        renormalise: make the weights of a token add up to 1. They do so by themselves at 1;
            otherwise the variance shrinks, and a bias of order 1 / draws comes in.
        generator: of random numbers.
        uniform_CK: the random numbers themselves, float64 in [0, 1), instead of a generator.
    """
    if draws < 1 or proposal <= 0:
        raise ConfigError(
            f"cannot sample {draws} draws from p^{proposal}: at least one, and a power above 0"
        )
    weight_CV = p_CV.double()
    if proposal != 1.0:
        weight_CV = weight_CV**proposal
    cdf_CV = weight_CV.cumsum(-1)  # float64: many small terms
    total_C1 = cdf_CV[:, -1:].clone()
    if uniform_CK is None:
        uniform_CK = torch.rand(
            len(p_CV), draws, dtype=torch.float64, device=p_CV.device, generator=generator
        )
    ids_CK = torch.searchsorted(cdf_CV, uniform_CK * total_C1, right=True)
    ids_CK = ids_CK.clamp(max=p_CV.shape[1] - 1).sort(-1).values
    ids_CK, count_CK = _counted(ids_CK)
    ratio_CK = p_CV.gather(1, ids_CK) * total_C1 / weight_CV.gather(1, ids_CK)
    kept_CK = torch.where(count_CK > 0, ratio_CK * count_CK / draws, 0.0)
    if renormalise:
        kept_CK = kept_CK / kept_CK.sum(-1, keepdim=True)
    return SparseTargets(ids_CK, kept_CK.float(), torch.special.entr(p_CV).sum(-1))


def _counted(sorted_CK: Tensor) -> tuple[Tensor, Tensor]:
    """Different ids of each row in front, and how often each occurs: 0 for what is left over."""
    new_CK = torch.ones_like(sorted_CK, dtype=torch.bool)
    new_CK[:, 1:] = sorted_CK[:, 1:] != sorted_CK[:, :-1]
    place_CK = new_CK.cumsum(-1) - 1
    count_CK = torch.zeros_like(sorted_CK).scatter_add_(1, place_CK, torch.ones_like(sorted_CK))
    ids_CK = sorted_CK[:, :1].expand_as(sorted_CK).clone().scatter_(1, place_CK, sorted_CK)
    most = int((count_CK > 0).sum(-1).max())
    return ids_CK[:, :most], count_CK[:, :most]


def top_k(p_CV: Tensor, k: int) -> SparseTargets:
    """The k likeliest ids, their probabilities renormalised."""
    p_CK, ids_CK = _likeliest(p_CV, k)
    return renormalised(ids_CK, p_CK)


def top_p(p_CV: Tensor, p: float, *, most: int = 1024) -> SparseTargets:
    """The fewest likeliest ids that together have probability p, renormalised.

    Args:
        p_CV: the teacher's probabilities.
        p: above 0, at most 1.
        most: ids of a token, at most; a flat distribution would need most of the vocabulary.
    """
    if not 0 < p <= 1:
        raise ConfigError(f"p = {p} is not a probability to reach: above 0, at most 1")
    p_CK, ids_CK = _likeliest(p_CV, min(most, p_CV.shape[1]))
    before_CK = p_CK.double().cumsum(-1) - p_CK
    p_CK = torch.where(before_CK < p, p_CK, 0.0)
    longest = int((p_CK > 0).sum(-1).max())
    return renormalised(ids_CK[:, :longest], p_CK[:, :longest])


def top_k_with_tail(p_CV: Tensor, k: int) -> SparseTargets:
    """The k likeliest ids with their probabilities, and the mass of all others as one bucket."""
    p_CK, ids_CK = _likeliest(p_CV, k)
    tail_C = p_CV.scatter(1, ids_CK, 0.0).sum(-1)
    entropy_C = torch.special.entr(p_CK).sum(-1) + torch.special.entr(tail_C)
    return SparseTargets(ids_CK, p_CK, entropy_C, tail_C)


def _likeliest(p_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Probabilities and ids [C, k], the likeliest first."""
    if not 0 < k <= p_CV.shape[1]:
        raise ConfigError(f"cannot keep {k} ids of a vocabulary of {p_CV.shape[1]}: 1 to that many")
    found = p_CV.topk(k)
    return found.values, found.indices


def renormalised(ids_CK: Tensor, p_CK: Tensor) -> SparseTargets:
    """Kept ids with weights in proportion to `p_CK`; a token with none at all stays without."""
    p_CK = p_CK / p_CK.sum(-1, keepdim=True).clamp(min=1e-30)
    return SparseTargets(ids_CK, p_CK, torch.special.entr(p_CK).sum(-1))


@torch.no_grad()
def sparse_targets(
    teacher_x_ND: Tensor,
    teacher_weight_VD: Tensor,
    choose: Choice,
    *,
    cap: float | None,
    temperature: float = 1.0,
    vocab: int | None = None,
    chunk: int | None = None,
) -> SparseTargets:
    """Targets of all tokens from a teacher's hidden states, never holding all their logits.

    Args:
        teacher_x_ND: the teacher's final hidden states.
        teacher_weight_VD: its head.
        choose: what to keep, as in `lambda p_CV: sample(p_CV, 256)`.
        cap: its final soft cap; None for none.
        temperature: of the distribution.
        vocab: the real vocabulary; later rows of the head take no probability. None: all.
        chunk: tokens per chunk.
    """
    weight_VD = teacher_weight_VD[:vocab].to(teacher_x_ND.dtype)
    chunk = min(chunk or chunk_size(len(weight_VD)), len(teacher_x_ND))
    buffer_CV = teacher_x_ND.new_empty(chunk, len(weight_VD))
    found: list[SparseTargets] = []
    for start in range(0, len(teacher_x_ND), chunk):
        rows = slice(start, min(start + chunk, len(teacher_x_ND)))
        raw_CV = torch.mm(teacher_x_ND[rows], weight_VD.T, out=buffer_CV[: rows.stop - rows.start])
        for part, _ in tiles(rows, len(weight_VD)):
            logits_CV = raw_CV[part].float()
            if cap is not None:
                logits_CV.div_(cap).tanh_().mul_(cap)  # in place: nobody needs the raw ones
            p_CV, _ = softmax(logits_CV / temperature, cap and cap / temperature)
            found.append(choose(p_CV))
    return dataclasses.replace(joined(found), temperature=temperature)


def joined(parts: Sequence[SparseTargets]) -> SparseTargets:
    """One after another, padded to the widest; all with a tail or all without."""
    widest = max(p.ids_NK.shape[1] for p in parts)
    tails = [p.tail_N for p in parts if p.tail_N is not None]
    return SparseTargets(
        torch.cat([_widened(p.ids_NK, widest) for p in parts]),
        torch.cat([_widened(p.weight_NK, widest) for p in parts]),
        torch.cat([p.entropy_N for p in parts]),
        torch.cat(tails) if tails else None,
        parts[0].temperature,
    )


def _widened(x_CK: Tensor, width: int) -> Tensor:
    return F.pad(x_CK, (0, width - x_CK.shape[1]))
