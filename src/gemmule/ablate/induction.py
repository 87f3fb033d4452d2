"""In-context learning in its simplest form: does a model copy from its context?

A sequence is random tokens, followed by the same tokens again. Only the first half helps to predict
the second, so any gain there comes from the context (the induction heads of arXiv 2209.11895).

Shapes: B sequences, T input tokens, L tokens of a half, V vocabulary.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

LENGTH, SEQUENCES, BATCH = 64, 128, 16


@dataclasses.dataclass(frozen=True)
class Induction:
    """Result of the probe.

    Attributes:
        induction: mean log p(token | prefix) of the second half minus that of the first, nats.
        copied: fraction of the second half's tokens that the model predicts as most likely.
        first_half: mean log p of the first half, nats.
        second_half: mean log p of the second half, nats.
        length: tokens per half.
        sequences: number of sequences.
    """

    induction: float
    copied: float
    first_half: float
    second_half: float
    length: int
    sequences: int


@torch.no_grad()
def induction(
    model: Callable[[Tensor], Tensor],
    ids: Tensor,
    *,
    length: int = LENGTH,
    sequences: int = SEQUENCES,
    bos: int | None = None,
    seed: int = 0,
) -> Induction:
    """Probes a model.

    Args:
        model: from tokens [B, T] to logits [B, T, V].
        ids: tokens to sample from, uniformly; no token twice in a half if there are enough.
        length: tokens per half, L.
        sequences: number of sequences; the same ones for the same seed.
        bos: token before every sequence. Without one, the first token is not predicted.
        seed: seed of the sequences.
    """
    generator = torch.Generator().manual_seed(seed)
    half_BL = torch.stack([_half(ids, length, generator) for _ in range(sequences)])
    tokens_BT = torch.cat([half_BL, half_BL], 1)
    if bos is not None:
        tokens_BT = torch.cat([torch.full((sequences, 1), bos), tokens_BT], 1)
    log_p, hits = [], []
    for part_BT in tokens_BT.split(BATCH):
        log_p_BTV = model(part_BT[:, :-1]).float().log_softmax(-1)
        target_BT = part_BT[:, 1:]
        log_p.append(log_p_BTV.gather(-1, target_BT[..., None])[..., 0])
        hits.append(log_p_BTV.argmax(-1) == target_BT)
    log_p_BT, hit_BT = torch.cat(log_p), torch.cat(hits)
    first, second = log_p_BT[:, :-length].mean().item(), log_p_BT[:, -length:].mean().item()
    copied = hit_BT[:, -length:].float().mean().item()
    return Induction(second - first, copied, first, second, length, sequences)


def _half(ids: Tensor, length: int, generator: torch.Generator) -> Tensor:
    if length <= len(ids):
        return ids[torch.randperm(len(ids), generator=generator)[:length]]
    return ids[torch.randint(len(ids), (length,), generator=generator)]
