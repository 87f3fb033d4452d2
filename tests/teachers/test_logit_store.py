"""Shards on disk: every kind of damage is detected before a student learns from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemmule import files
from gemmule.errors import ConfigError, DataError
from gemmule.losses.sparse_targets import SparseTargets
from gemmule.teachers import logit_store as stores
from gemmule.teachers.logit_store import Store, at_temperature, identity, write_shard
from gemmule.teachers.target_spec import TargetSpec

VOCAB, SEQ = 300, 8


def manifest(spec: TargetSpec, windows: int = 10, **changes: Any) -> dict[str, Any]:
    return {
        "kind": stores.KIND,
        "format": stores.FORMAT,
        "targets": spec.settings(),
        "vocab_size": VOCAB,
        "teacher": {"path": "somewhere", "fingerprint": "aa"},
        "tokenizer": "bb",
        "corpus": {"path": "there", "name": "words", "fingerprint": "cc"},
        "packing": {"seq_len": SEQ},
        "seed": 0,
        "windows": windows,
        **changes,
    }


def targets_of(spec: TargetSpec, index: int) -> SparseTargets:
    g = torch.Generator().manual_seed(index)
    return spec.choice(0, index)((2 * torch.randn(SEQ, VOCAB, generator=g)).softmax(-1))


def make(
    folder: Path, spec: TargetSpec, parts: tuple[tuple[int, int], ...] = ((0, 4), (4, 10))
) -> Path:
    about = manifest(spec)
    folder.mkdir()
    files.write_json(folder / stores.MANIFEST, about)
    for first, stop in parts:
        data = [spec.codec(VOCAB).encode(targets_of(spec, i)) for i in range(first, stop)]
        write_shard(folder, identity(about), first, data)
    return folder


@pytest.fixture
def spec() -> TargetSpec:
    return TargetSpec(draws=20)


def test_read_in_any_order(spec: TargetSpec, tmp_path: Path) -> None:
    store = Store.open(make(tmp_path / "s", spec))
    store.check_complete()
    assert (store.recorded, store.sequences, store.gaps()) == (10, 10, [])
    got = store.targets([7, 0, 4])
    assert got.ids_NK.shape[0] == 3 * SEQ
    for row, index in enumerate([7, 0, 4]):
        expected = targets_of(spec, index)
        mine = got.part(slice(row * SEQ, (row + 1) * SEQ))
        for a, b in zip(mine.ids_NK, expected.ids_NK, strict=True):
            assert set(a.tolist()) | {0} >= set(b.tolist())
        torch.testing.assert_close(mine.weight_NK.sum(-1), torch.ones(SEQ))
        assert (mine.entropy_N - expected.entropy_N).abs().max() < 0.003
    sizes = [p.stat().st_size for p in (tmp_path / "s" / "shards").iterdir()]
    assert store.bytes_per_token * 10 * SEQ < sum(sizes) < store.bytes_per_token * 80 + 400


def test_every_flipped_bit_is_found(spec: TargetSpec, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", spec)
    shard = sorted((folder / "shards").iterdir())[0]
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(0, 32), *rng.integers(32, len(whole), 120)]:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        shard.write_bytes(data)
        with pytest.raises(DataError) as error:
            store = Store.open(folder)
            store.check_complete()
            store.targets(range(4))
        assert any(w in str(error.value) for w in ("damaged", "not a shard", "another logit store"))
    shard.write_bytes(whole)
    Store.open(folder).targets(range(4))


def test_a_cut_or_grown_shard_is_found(spec: TargetSpec, tmp_path: Path) -> None:
    folder = make(tmp_path / "s", spec)
    shard = sorted((folder / "shards").iterdir())[0]
    whole = shard.read_bytes()
    for data in (b"", whole[:7], whole[:40], whole[:-1], whole + b"\0"):
        shard.write_bytes(data)
        with pytest.raises(DataError, match=r"damaged|cannot be read"):
            Store.open(folder)


def test_holes_overlaps_and_strangers(spec: TargetSpec, tmp_path: Path) -> None:
    store = Store.open(make(tmp_path / "holes", spec, ((0, 3), (5, 8))))
    assert store.gaps() == [(3, 5), (8, 10)]
    with pytest.raises(DataError, match="4 of 10 sequences are missing"):
        store.check_complete()
    with pytest.raises(DataError, match="does not hold sequence 4"):
        store.targets([4])
    with pytest.raises(DataError, match="hold the same sequences"):
        Store.open(make(tmp_path / "overlap", spec, ((0, 6), (4, 10))))
    other = make(tmp_path / "other", TargetSpec(draws=21))
    here = make(tmp_path / "here", spec, ((0, 4),))
    name = "shards/000000004-000000010.targets"
    (here / name).write_bytes((other / name).read_bytes())
    with pytest.raises(DataError, match="belongs to another logit store"):
        Store.open(here)
    # What a killed recording left is not taken for a shard.
    (here / name).rename(here / "shards/.000000004-000000010.targets.17.tmp")
    assert Store.open(here).gaps() == [(4, 10)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no manifest.json"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"kind": "something"}', "manifest describes something else"),
        ('{"kind": "gemmule logit store", "format": 9}', "of format 9, this version reads 1"),
        ('{"kind": "gemmule logit store", "format": 1}', "is damaged"),
    ],
)
def test_manifests_that_are_none(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=message):
        Store.open(tmp_path)
    with pytest.raises(DataError, match="no logit store at"):
        Store.open(tmp_path / "nowhere")


def test_identity() -> None:
    about = manifest(TargetSpec())
    moved = {**about, "windows": 99, "teacher": {**about["teacher"], "path": "elsewhere"}}
    assert identity(moved) == identity(about)
    for change in ({"seed": 1}, {"tokenizer": "x"}, {"teacher": {"fingerprint": "x"}}):
        assert identity({**about, **change}) != identity(about)


def test_temperature_where_it_can_be_known() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]])
    ranked = TargetSpec(kind="top_k", k=2)
    targets = ranked.choice(0, 0)(p)
    hot = at_temperature(targets, 2.0, ranked)
    expected = torch.tensor([0.5, 0.3]).sqrt()
    torch.testing.assert_close(hot.weight_NK[0], expected / expected.sum())
    torch.testing.assert_close(hot.entropy_N, torch.special.entr(hot.weight_NK).sum(-1))
    assert hot.temperature == 2.0
    assert at_temperature(targets, 1.0, ranked) is targets
    for spec in (TargetSpec(), TargetSpec(kind="top_k_tail", k=2)):
        with pytest.raises(ConfigError, match="record again with --temperature 2"):
            at_temperature(spec.choice(0, 0)(p), 2.0, spec)
