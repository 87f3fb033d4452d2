"""Encoded targets: what goes in comes out, and the size is what the format promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmule.errors import DataError
from gemmule.losses.sparse_targets import SparseTargets, sample
from gemmule.teachers import bit_packing
from gemmule.teachers.target_codec import SequenceTargets, TargetCodec, to_sparse_targets
from gemmule.teachers.target_spec import TargetSpec


def bytes_of(data: bytes) -> bit_packing.Bytes:
    return np.frombuffer(data, np.uint8)


def dense(targets: SparseTargets, vocab: int) -> torch.Tensor:
    weights = torch.zeros(len(targets), vocab, dtype=torch.float64)
    return weights.scatter_add_(1, targets.ids_NK, targets.weight_NK.double())


def probabilities(tokens: int, vocab: int, seed: int, spread: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(tokens, vocab, generator=g)).softmax(-1)


@given(
    st.lists(st.integers(0, bit_packing.WIDEST).flatmap(
        lambda w: st.tuples(st.integers(0, 2**w - 1), st.just(w))
    ), max_size=60)
)  # fmt: skip
def test_fields_of_any_width(fields: list[tuple[int, int]]) -> None:
    values = np.array([v for v, _ in fields], np.int64)
    widths = np.array([w for _, w in fields], np.int64)
    data = bit_packing.packed(values, widths)
    assert len(data) == math.ceil(widths.sum() / 8)
    ends = np.cumsum(widths)
    assert bit_packing.unpacked(bytes_of(data), ends - widths, widths).tolist() == values.tolist()


SPECS = [
    TargetSpec(draws=1),
    TargetSpec(draws=2),
    TargetSpec(draws=3),
    TargetSpec(draws=50),
    TargetSpec(draws=300),
    TargetSpec(draws=40, proposal=0.7),
    TargetSpec(kind="top_k", k=1),
    TargetSpec(kind="top_k", k=17),
    TargetSpec(kind="top_k_tail", k=17),
    TargetSpec(kind="top_p", p=0.9, most=60),
]


@pytest.mark.parametrize("vocab", [17, 512, 256_000])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.label)
@pytest.mark.parametrize("spread", [0.0, 3.0, 40.0])
def test_what_goes_in_comes_out(spec: TargetSpec, vocab: int, spread: float) -> None:
    p_CV = probabilities(9, vocab, 1, spread)
    spec = spec.for_vocabulary(vocab)
    targets = spec.choice(3, 5)(p_CV)
    codec = spec.codec(vocab)
    window = codec.decode(bytes_of(codec.encode(targets)), len(p_CV))
    got = to_sparse_targets([window], 1.0)
    expected, decoded = dense(targets, vocab), dense(got, vocab)
    if codec.draws is not None:  # counts come back exactly
        counts = (decoded * codec.draws).round()
        assert (decoded * codec.draws - counts).abs().max() < 1e-4
        assert counts.sum(-1).tolist() == [spec.draws] * len(p_CV)
        assert (decoded - expected).abs().max() < 1e-4
    else:
        present = expected > math.exp(-27)
        assert (decoded[present] / expected[present] - 1).abs().max() < 0.01
        assert max(decoded[~present].tolist(), default=0) < math.exp(-26)
    assert (got.entropy_N - targets.entropy_N).abs().max() <= 0.5 / 256 + 1e-5
    if spec.kind == "top_k_tail":
        assert got.tail_N is not None
        assert targets.tail_N is not None
        assert (got.tail_N - targets.tail_N).abs().max() < 0.005
        assert (decoded.sum(-1) + got.tail_N - 1).abs().max() < 1e-5
    elif spec.proposal == 1.0:
        assert (decoded.sum(-1) - 1).abs().max() < 1e-5


@settings(max_examples=60)
@given(
    st.integers(2, 3000),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
)
def test_any_counts(vocab: int, lengths: list[int], seed: int) -> None:
    """Tokens with few and many ids, so that every way to store counts is met."""
    rng = np.random.default_rng(seed)
    draws = 64
    rows = []
    for wanted in lengths:
        ids = rng.choice(vocab, min(wanted, vocab), replace=False)
        counts = np.ones(len(ids), int)
        for _ in range(draws - len(ids)):
            counts[rng.integers(len(ids))] += 1
        rows.append(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    weights = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(list(row))
        weights[i, : len(row)] = torch.tensor(list(row.values())) / draws
    targets = SparseTargets(ids, weights, torch.rand(len(rows)))
    codec = TargetCodec(vocab, min(draws, vocab), draws=draws)
    window = codec.decode(bytes_of(codec.encode(targets)), len(rows))
    end = np.cumsum(window.length_T)
    for i, row in enumerate(rows):
        part = slice(end[i] - len(row), end[i])
        counts = np.rint(window.weight_M[part] * draws).astype(int)
        assert dict(zip(window.id_M[part].tolist(), counts.tolist(), strict=True)) == row
        assert (np.diff(window.id_M[part]) > 0).all()


def test_a_token_without_ids_is_kept() -> None:
    """What a server says nothing of, for instance the first token."""
    targets = SparseTargets(
        torch.tensor([[0, 0], [3, 9]]), torch.tensor([[0.0, 0.0], [0.25, 0.75]]), torch.zeros(2)
    )
    codec = TargetCodec(32, 2)
    window = codec.decode(bytes_of(codec.encode(targets)), 2)
    assert window.length_T.tolist() == [0, 2]
    assert window.id_M.tolist() == [3, 9]
    assert window.weight_M.tolist() == pytest.approx([0.25, 0.75], rel=1e-2)


def test_size_at_gemma_2s_vocabulary() -> None:
    """A large teacher's tokens have about twelve different ids among fifty draws."""
    p_CV = probabilities(256, 256_000, 0, 7.2)
    targets = sample(p_CV, 50, generator=torch.Generator().manual_seed(0))
    ids = (targets.weight_NK > 0).sum(-1).float().mean().item()
    assert 11 < ids < 13
    codec = TargetSpec(draws=50).codec(256_000)
    assert len(codec.encode(targets)) / 256 < 36


def test_damaged_bytes_are_refused_or_give_targets() -> None:
    """The checksum detects them first; without it no byte may end in a crash or an endless loop."""
    rng = np.random.default_rng(0)
    for spec in SPECS:
        codec = spec.for_vocabulary(200).codec(200)
        whole = codec.encode(spec.choice(0, 0)(probabilities(8, 200, 0, 2.0)))
        for _ in range(60):
            data = bytes_of(whole).copy()
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            data = data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data
            try:
                assert isinstance(codec.decode(data, 8), SequenceTargets)
            except DataError as e:
                assert "not the targets of a sequence" in str(e)


def test_draws_depend_only_on_seed_and_index() -> None:
    p_CV = probabilities(20, 100, 0, 1.0)
    spec = TargetSpec(draws=9)
    one, again = spec.choice(1, 7)(p_CV), spec.choice(1, 7)(p_CV)
    assert torch.equal(one.ids_NK, again.ids_NK)
    assert torch.equal(one.weight_NK, again.weight_NK)
    for other in (spec.choice(1, 8), spec.choice(2, 7)):
        assert not torch.equal(dense(other(p_CV), 100), dense(one, 100))


def test_settings_of_another_kind_are_refused() -> None:
    from gemmule.errors import ConfigError

    for wrong in ({"kind": "top_k", "draws": 12}, {"k": 3}, {"kind": "top_p", "k": 3}):
        with pytest.raises(ConfigError, match="not a setting of"):
            TargetSpec.parse(wrong)
    with pytest.raises(ConfigError, match="more than the vocabulary's 17"):
        TargetSpec(kind="top_k", k=18).for_vocabulary(17)
