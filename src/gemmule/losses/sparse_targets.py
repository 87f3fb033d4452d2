"""Sparse targets: a teacher's next-token distributions kept at a few ids per token.

Four ways to choose the ids, each a function of the teacher's probabilities [C, V] of some tokens;
`Head.sparse_targets` applies one to all tokens, chunk by chunk.

- `sample`: random draws. Averaged over draws, the loss and its gradient are those of the whole
  distribution (Random Sampling KD, arXiv 2503.16870; Gemma 3 keeps 256 draws).
- `top_k`, `top_p`: the most likely ids, renormalized. Biased: the student learns to give all other
  ids no probability.
- `top_k_with_tail`: the most likely ids with their probabilities, and all others as one bucket.

Shapes: N tokens, C tokens of one chunk, D model, V vocabulary, K kept ids of a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gemmule.errors import ConfigError


@dataclass(frozen=True)
class SparseTargets:
    """What is kept of a teacher's next-token distributions.

    Attributes:
        ids_NK: kept ids, int64; distinct within a token where there is a tail.
        weight_NK: weight of each id, fp32. An entry of weight 0 is padding, whatever its id.
        entropy_N: entropy in nats, fp32, that forward KL subtracts from the cross-entropy: that of
            the teacher's whole distribution for samples, that of the kept weights otherwise.
        tail_N: the teacher's probability of all other ids together, fp32; None without a tail.
        temperature: temperature of the teacher's softmax; the student's must be the same.
    """

    ids_NK: Tensor
    weight_NK: Tensor
    entropy_N: Tensor
    tail_N: Tensor | None = None
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.ids_NK)

    def to(self, device: torch.device | str) -> "SparseTargets":
        """A copy on another device."""
        tail_N = None if self.tail_N is None else self.tail_N.to(device)
        return SparseTargets(
            self.ids_NK.to(device),
            self.weight_NK.to(device),
            self.entropy_N.to(device),
            tail_N,
            self.temperature,
        )

    def part(self, rows: slice) -> "SparseTargets":
        """The targets of a slice of the tokens."""
        return SparseTargets(
            self.ids_NK[rows],
            self.weight_NK[rows],
            self.entropy_N[rows],
            None if self.tail_N is None else self.tail_N[rows],
            self.temperature,
        )

    def rows(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Ids, weights, tail and entropy of a slice of the tokens.

        The id of a padding entry is replaced by the token's first id.
        """
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
    renormalize: bool = False,
    generator: torch.Generator | None = None,
    uniform_CK: Tensor | None = None,
) -> SparseTargets:
    """Draws ids with replacement, with probabilities proportional to p^proposal.

    An id drawn n times gets the weight n / draws times the ratio of its probability to that of the
    proposal: an unbiased estimate of the distribution, whatever the proposal. A power below 1 draws
    rare ids more often.

    Args:
        p_CV: the teacher's probabilities.
        draws: number of draws per token; an id drawn several times is kept once.
        proposal: power, above 0. At 1 the weights are fractions of the draws.
        renormalize: make the weights of a token add up to 1. At proposal 1 they do anyway;
            otherwise the variance shrinks at the price of a bias of order 1 / draws.
        generator: generator of the random numbers.
        uniform_CK: the random numbers themselves, float64 in [0, 1), instead of a generator.

    Raises:
        ConfigError: for less than one draw, and a power of 0 or less.
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
    if renormalize:
        kept_CK = kept_CK / kept_CK.sum(-1, keepdim=True)
    return SparseTargets(ids_CK, kept_CK.float(), torch.special.entr(p_CV).sum(-1))


def _counted(sorted_CK: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids of each row, packed to the front, and their counts: 0 for the unused rest."""
    new_CK = torch.ones_like(sorted_CK, dtype=torch.bool)
    new_CK[:, 1:] = sorted_CK[:, 1:] != sorted_CK[:, :-1]
    place_CK = new_CK.cumsum(-1) - 1
    count_CK = torch.zeros_like(sorted_CK).scatter_add_(1, place_CK, torch.ones_like(sorted_CK))
    ids_CK = sorted_CK[:, :1].expand_as(sorted_CK).clone().scatter_(1, place_CK, sorted_CK)
    width = int((count_CK > 0).sum(-1).max())
    return ids_CK[:, :width], count_CK[:, :width]


def top_k(p_CV: Tensor, k: int) -> SparseTargets:
    """The k most likely ids with their probabilities, renormalized."""
    p_CK, ids_CK = _most_likely(p_CV, k)
    return renormalized(ids_CK, p_CK)


def top_p(p_CV: Tensor, p: float, *, max_ids: int = 1024) -> SparseTargets:
    """The smallest set of most likely ids with total probability p or more, renormalized.

    Args:
        p_CV: the teacher's probabilities.
        p: probability to reach, above 0 and at most 1.
        max_ids: limit of the ids per token; a flat distribution would need most of the vocabulary.

    Raises:
        ConfigError: when p is not a probability above 0.
    """
    if not 0 < p <= 1:
        raise ConfigError(f"p = {p} is not a probability to reach: above 0, at most 1")
    p_CK, ids_CK = _most_likely(p_CV, min(max_ids, p_CV.shape[1]))
    before_CK = p_CK.double().cumsum(-1) - p_CK
    p_CK = torch.where(before_CK < p, p_CK, 0.0)
    longest = int((p_CK > 0).sum(-1).max())
    return renormalized(ids_CK[:, :longest], p_CK[:, :longest])


def top_k_with_tail(p_CV: Tensor, k: int) -> SparseTargets:
    """The k most likely ids with their probabilities, and that of all others together."""
    p_CK, ids_CK = _most_likely(p_CV, k)
    tail_C = p_CV.scatter(1, ids_CK, 0.0).sum(-1)
    entropy_C = torch.special.entr(p_CK).sum(-1) + torch.special.entr(tail_C)
    return SparseTargets(ids_CK, p_CK, entropy_C, tail_C)


def _most_likely(p_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Probabilities and ids [C, k], the most likely first."""
    if not 0 < k <= p_CV.shape[1]:
        raise ConfigError(f"cannot keep {k} ids of a vocabulary of {p_CV.shape[1]}: 1 to that many")
    top = p_CV.topk(k)
    return top.values, top.indices


def renormalized(ids_CK: Tensor, p_CK: Tensor) -> SparseTargets:
    """Kept ids with weights proportional to `p_CK`; a token without any weight keeps none."""
    p_CK = p_CK / p_CK.sum(-1, keepdim=True).clamp(min=1e-30)
    return SparseTargets(ids_CK, p_CK, torch.special.entr(p_CK).sum(-1))


def joined(parts: Sequence[SparseTargets]) -> SparseTargets:
    """Targets of consecutive tokens, padded to the widest; all with a tail or all without."""
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
