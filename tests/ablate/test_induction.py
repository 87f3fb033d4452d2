"""The probe, on models whose every probability is known."""

import math

import pytest
import torch
from torch import Tensor

from gemmule.ablate.induction import induction

VOCAB, IDS = 50, torch.arange(10, 50)


def copying(tokens_BT: Tensor) -> Tensor:
    """Logit 5 for what followed the last token's earlier occurrence, 0 for all else."""
    B, T = tokens_BT.shape
    logits = torch.zeros(B, T, VOCAB)
    for b in range(B):
        followed: dict[int, int] = {}
        for t in range(T):
            token = int(tokens_BT[b, t])
            if token in followed:
                logits[b, t, followed[token]] = 5.0
            if t + 1 < T:
                followed[token] = int(tokens_BT[b, t + 1])
    return logits


@pytest.mark.parametrize("bos", [None, 2])
def test_a_model_that_copies(bos: int | None) -> None:
    """The second half's first token is preceded by nothing seen before: it cannot be copied."""
    length = 8
    score = induction(copying, IDS, length=length, sequences=5, bos=bos)
    sure = 5 - math.log(math.exp(5) + VOCAB - 1)
    second = (sure * (length - 1) - math.log(VOCAB)) / length
    assert score.first_half == pytest.approx(-math.log(VOCAB), rel=1e-6)
    assert score.second_half == pytest.approx(second, rel=1e-6)
    assert score.induction == pytest.approx(second + math.log(VOCAB), rel=1e-6)
    assert score.copied == pytest.approx((length - 1) / length)


def test_a_model_that_looks_at_nothing() -> None:
    """A fixed distribution says the same of both halves, here of every id once."""
    logits_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
    score = induction(
        lambda t: logits_V.expand(*t.shape, VOCAB), IDS, length=len(IDS), sequences=3, bos=2
    )
    assert score.induction == pytest.approx(0.0, abs=1e-6)
    log_p_V = logits_V.log_softmax(-1)
    assert score.first_half == pytest.approx(log_p_V[IDS].mean().item(), rel=1e-5)


def test_a_bigram_model_gains_nothing() -> None:
    """It knows what follows what, but not in this text; only without <bos> do halves differ."""
    table_VV = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    score = induction(lambda t: table_VV[t], IDS, length=30, sequences=200)
    assert abs(score.induction) < 0.02


def test_the_same_seed_reads_the_same() -> None:
    seen: list[Tensor] = []

    def model(tokens_BT: Tensor) -> Tensor:
        seen.append(tokens_BT)
        return torch.zeros(*tokens_BT.shape, VOCAB)

    for seed in (1, 1, 2):
        induction(model, IDS, length=7, sequences=4, bos=2, seed=seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    tokens_BT = seen[0]
    assert (tokens_BT[:, 0] == 2).all()
    assert torch.equal(tokens_BT[:, 1:7], tokens_BT[:, 8:])  # the last input is not fed
    assert tokens_BT[:, 1:].min() >= 10
    assert all(len(set(row)) == 7 for row in tokens_BT[:, 1:8].tolist())


def test_more_tokens_than_ids() -> None:
    score = induction(copying, torch.arange(3), length=5, sequences=2)
    assert score.length == 5
