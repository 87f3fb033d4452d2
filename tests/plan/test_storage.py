"""What stored targets are expected to take."""

import pytest
import torch

from gemmule.plan.storage import estimated_bytes, zipf
from gemmule.teachers.target_spec import TargetSpec


@pytest.mark.parametrize("entropy", [0.5, 2.5, 6.0])
def test_zipf_has_the_entropy_asked_for(entropy: float) -> None:
    p_V = zipf(4096, entropy)
    assert float(p_V.sum()) == pytest.approx(1, abs=1e-4)
    assert float(torch.special.entr(p_V).sum()) == pytest.approx(entropy, abs=1e-3)
    assert bool((p_V.diff() <= 0).all())


def test_bytes_follow_draws_and_entropy() -> None:
    specs = [TargetSpec(draws=12), TargetSpec(), TargetSpec(kind="top_k", k=32)]
    sure, unsure = (estimated_bytes(specs, 4096, entropy) for entropy in (1.0, 4.0))
    assert list(sure) == ["sampled-12", "sampled-50", "top-32"]
    assert sure["sampled-12"] < sure["sampled-50"] < unsure["sampled-50"]
    # 32 ids of 2 + log2(4096 / 32) bits and as many weights of 12, and a few bits a token.
    assert unsure["top-32"] == pytest.approx(32 * (2 + 7 + 12) / 8 + 2.25, abs=1.5)


def test_an_entropy_that_the_vocabulary_cannot_have_is_cut() -> None:
    assert estimated_bytes([TargetSpec()], 64, 9.0)["sampled-50"] < 64
