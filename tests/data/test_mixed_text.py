"""The batches of a mixture: the same rows for any ranks and batches, resumed exactly or refused."""

import random
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.mixture.mixed_text import SOURCES, MixedText
from gemmule.data.mixture.schedule import Schedule
from gemmule.data.mixture.settings import MixtureSource, MixtureStage
from gemmule.data.packed_text import SEQUENCE_INDICES, PackedText, batch_of, sequence_count
from gemmule.data.prepare import prepare
from gemmule.errors import DataError

SEQ_LEN = 32
WORDS = ["the", "a", "sea", "ship", "captain", "said", "never", "wind", "old", "under", "red"]
some = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """Three data folders of different sizes."""
    top = tmp_path_factory.mktemp("mixture")
    for name, count, words in (("web", 60, 60), ("code", 40, 40), ("good", 24, 10)):
        (top / f"{name}-text").mkdir()
        for seed in range(count):
            pick = random.Random(f"{name} {seed}")
            text = " ".join(pick.choice(WORDS) for _ in range(words))
            (top / f"{name}-text" / f"{seed}.txt").write_text(text)
        prepare(
            top / f"{name}-text", tokenizer, top / name, licence=f"{name} license",
            near_duplicates="ignore",
        )  # fmt: skip
    return top


def sources(folders, **changes):
    weights = {"web": 6, "code": 3, "good": 1}
    return [
        MixtureSource(path=folders / name, weight=weight, **changes.get(name, {}))
        for name, weight in weights.items()
    ]


@pytest.fixture(scope="module")
def splits(folders):
    return [d.split("train") for d in MixedDataset.open_all(sources(folders)).sources.values()]


def reader(folders, splits, size=4, part=0, parts=1, *, steps=60, stages=(), seed=3, **changes):
    windows = [sequence_count(split, SEQ_LEN) for split in splits]
    schedule = Schedule(sources(folders, **changes), stages, windows, steps, 8)
    return MixedText(splits, schedule, size, SEQ_LEN, seed, part=part, parts=parts)


def rows(batch):
    pairs = zip(
        batch.extras[SOURCES].tolist(), batch.extras[SEQUENCE_INDICES].tolist(), strict=True
    )
    return list(pairs)


def test_a_batch_is_the_sources_own_windows(folders, splits):
    text = reader(folders, splits, size=16)
    batch = text.next()
    assert set(batch.extras[SOURCES].tolist()) == {0, 1, 2}
    for row, (source, index) in enumerate(rows(batch)):
        own = batch_of(splits[source], torch.tensor([index]).numpy(), SEQ_LEN)
        for name in ("tokens_BT", "labels_BT", "doc_ids_BT"):
            assert torch.equal(getattr(batch, name)[row], getattr(own, name)[0])


@some
@given(st.sampled_from([(1, 8), (1, 1), (2, 4), (2, 1), (4, 2), (8, 1), (3, 4)]), st.integers(1, 6))
def test_any_ranks_and_micro_batches_read_the_same_rows(folders, splits, world, batches):
    parts, size = world
    ranks = [reader(folders, splits, size, part, parts) for part in range(parts)]
    alone = reader(folders, splits, size * parts)
    for _ in range(batches):
        read = [row for rank in ranks for row in rows(rank.next())]
        assert read == rows(alone.next())
        assert all(rank.state() == alone.state() for rank in ranks)


def test_every_window_once_an_epoch_in_another_order_each_time(folders, splits):
    """Samples of the second epoch are those of the first (mosaicml/streaming issue 749)."""
    text = reader(folders, splits, size=1, steps=200)
    read = [rows(text.next())[0] for _ in range(1600)]
    for source, split in enumerate(splits):
        count = sequence_count(split, SEQ_LEN)
        mine = [index for number, index in read if number == source]
        epochs = [mine[n : n + count] for n in range(0, len(mine) - count + 1, count)]
        assert len(epochs) >= 2
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert epochs[0] != epochs[1]


@some
@given(st.integers(0, 30), st.integers(1, 4))
def test_another_number_of_ranks_goes_on_with_exactly_the_next_rows(folders, splits, done, parts):
    """No rank lacks a state, none is one batch behind (torchtitan 409 and 811, torchft 309)."""
    whole = reader(folders, splits, size=4)
    for _ in range(done):
        whole.next()
    state = whole.state()
    ranks = [reader(folders, splits, 2, part, parts) for part in range(parts)]
    for rank in ranks:
        rank.load_state(state)
    read = [row for _ in range(2) for rank in ranks for row in rows(rank.next())]
    after = reader(folders, splits, size=1)
    after.load_state(state)
    assert read == [rows(after.next())[0] for _ in range(4 * parts)]
    if parts == 2:
        assert read == rows(whole.next()) + rows(whole.next())


def test_a_state_of_another_mixture_is_refused(folders, splits):
    """Else it "silently trains on the wrong samples" (VeOmni, review of 853)."""
    text = reader(folders, splits)
    text.next()
    state = text.state()
    others = [
        reader(folders, splits, steps=61),
        reader(folders, splits, web={"max_epochs": 7}),
        reader(folders, splits, stages=[MixtureStage(share=0.1, weights={"web": 1})]),
        reader(folders, splits[:2] + splits[:1]),
    ]
    for other in others:
        with pytest.raises(DataError, match="saved with another mixture"):
            other.load_state(state)
    with pytest.raises(DataError, match="not a position in a mixture"):
        text.load_state({**state, "position": -1})
    folder = PackedText(splits[0], 4, SEQ_LEN, 3)
    with pytest.raises(DataError, match="not a position in train"):
        folder.load_state(state)
    with pytest.raises(DataError, match="saved with another mixture"):
        text.load_state(folder.state())


def test_what_was_read_is_counted(folders, splits):
    text = reader(folders, splits, size=10, good={"max_epochs": 1})
    counted = Counter()
    for _ in range(40):
        counted.update(source for source, _ in rows(text.next()))
        for number, read in enumerate(text.read().values()):
            assert read["tokens"] == counted[number] * SEQ_LEN
    assert text.read()["good"]["epochs"] == 1
    assert list(text.read()) == ["web", "code", "good"]


def test_several_folders_are_one_dataset(folders, splits, other_pieces, tmp_path):
    dataset = MixedDataset.open_all(sources(folders))
    assert dataset.name == "web-text + code-text + good-text"
    assert dataset.licence == "web license; code license; good license"
    heldout = [folder.split("heldout") for folder in dataset.sources.values()]
    whole = dataset.split("heldout")
    assert whole.token_count == sum(split.token_count for split in heldout)
    parts = [split.read(0, len(split)) for split in heldout]
    assert whole.read(0, len(whole)).tolist() == [n for part in parts for n in part.tolist()]
    assert dataset.fingerprint != MixedDataset.open_all(sources(folders)[::-1]).fingerprint
    other = prepare(folders / "web-text", other_pieces, tmp_path / "other")
    mixed = [*sources(folders), MixtureSource(path=other.path)]
    with pytest.raises(DataError, match="made with another tokenizer"):
        MixedDataset.open_all(mixed)
