import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from gemmule.data.loader import IGNORED, Loader, eval_batches, times_read
from gemmule.data.prepare import prepare
from gemmule.errors import DataError


@pytest.fixture(scope="module")
def dataset(corpus_folder, tokenizer, tmp_path_factory):
    return prepare(corpus_folder, tokenizer, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def train(dataset):
    return dataset.split("train")


def equal(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("tokens_BT", "targets_BT", "segments_BT")
    )


def check_rows(batch, bos=2):
    """Targets follow inputs within a document; segments change where a document starts."""
    for tokens, targets, segments in zip(
        batch.tokens_BT.numpy(), batch.targets_BT.numpy(), batch.segments_BT.numpy(), strict=True
    ):
        length = int((segments > 0).sum())
        assert (segments[length:] == 0).all()
        assert (targets[length:] == IGNORED).all()
        assert segments[0] == 1
        starts = tokens[1:length] == bos
        assert np.array_equal(np.diff(segments[:length]), starts)
        inside = targets[: length - 1] != IGNORED
        assert np.array_equal(inside, ~starts)
        assert np.array_equal(targets[: length - 1][inside], tokens[1:length][inside])


def test_shapes_types_and_document_borders(train):
    batch = Loader(train, 4, 1000, seed=0).next()
    for tensor in (batch.tokens_BT, batch.targets_BT, batch.segments_BT):
        assert tensor.shape == (4, 1000)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    check_rows(batch)
    assert batch.segments_BT.max() > 1
    assert (batch.targets_BT != 2).all()


def test_an_epoch_holds_every_window_once_in_its_own_order(train):
    loader = Loader(train, 1, 64, seed=3)
    windows = (train.token_count - 1) // 64
    assert loader.tokens_per_epoch == windows * 64
    whole = train.read(0, windows * 64).reshape(-1, 64)
    epochs = [[loader.next().tokens_BT[0].numpy() for _ in range(windows)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, whole))
    assert not all(np.array_equal(a, b) for a, b in zip(*epochs, strict=True))


def test_the_seed_decides_the_order(train):
    first = Loader(train, 4, 64, seed=1).next()
    assert equal(first, Loader(train, 4, 64, seed=1).next())
    assert not equal(first, Loader(train, 4, 64, seed=2).next())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 5), st.integers(1, 3000), st.integers(0, 40), st.integers(0, 2**32))
def test_a_restored_position_goes_on_with_the_same_batches(train, batch_size, seq_len, steps, seed):
    loader = Loader(train, batch_size, seq_len, seed)
    for _ in range(steps):
        loader.next()
    state = json.loads(json.dumps(loader.state()))
    other = Loader(train, batch_size, seq_len, seed=0)
    other.load_state(state)
    for _ in range(3):
        batch = loader.next()
        check_rows(batch)
        assert equal(batch, other.next())


@pytest.mark.parametrize(
    "state",
    [{}, {"seed": 0, "epoch": 0, "position": 10**9}, {"seed": 0, "epoch": -1, "position": 0}],
)
def test_an_impossible_position_is_refused(train, state):
    with pytest.raises(DataError, match="is no position in train"):
        Loader(train, 2, 64, seed=0).load_state(state)


def test_a_sequence_longer_than_the_data_names_both_numbers(train):
    with pytest.raises(DataError, match=rf"seq_len 99999999.*{train.token_count} tokens"):
        Loader(train, 1, 99_999_999, seed=0)
    with pytest.raises(DataError, match="at least 1"):
        Loader(train, 0, 64, seed=0)


@pytest.mark.parametrize("seq_len", [7, 64, 1000, 10**6])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_evaluation_predicts_every_token_once(dataset, tokenizer, batch_size, seq_len):
    split = dataset.split("heldout")
    targets = []
    for batch in eval_batches(split, batch_size, min(seq_len, 2 * split.token_count)):
        check_rows(batch)
        targets.append(batch.targets_BT[batch.targets_BT != IGNORED].numpy())
    targets = np.concatenate(targets)
    whole = split.read(0, split.token_count)
    assert np.array_equal(targets, whole[whole != 2])
    assert tokenizer.token_bytes()[targets].sum() == split.byte_count


def test_evaluation_of_a_part_is_spread_over_the_split(dataset):
    split = dataset.split("train")
    whole = [row for batch in eval_batches(split, 4, 32) for row in batch.tokens_BT]
    part = [row for batch in eval_batches(split, 4, 32, max_tokens=320) for row in batch.tokens_BT]
    assert len(part) == 10
    places = [next(n for n, w in enumerate(whole) if torch.equal(w, row)) for row in part]
    assert places == [n * len(whole) // 10 for n in range(10)]
    assert len(list(eval_batches(split, 64, 32, max_tokens=1))) == 1


@pytest.mark.parametrize("rows", [0, 3, 40, 41, 100])
def test_how_often_each_window_was_read_is_known_without_reading(train, rows):
    windows = 20
    loader = Loader(train, 1, 16, seed=5, windows=windows)
    read = np.zeros(windows, int)
    for _ in range(rows):
        read[loader.next().windows_B] += 1
    assert np.array_equal(times_read(windows, rows, seed=5), read)
