import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from gemmule.data.packed_text import SEQUENCE_INDICES, PackedText, eval_batches, times_read
from gemmule.data.prepare import prepare
from gemmule.errors import DataError
from gemmule.losses.labels import IGNORED


@pytest.fixture(scope="module")
def dataset(corpus_folder, tokenizer, tmp_path_factory):
    return prepare(corpus_folder, tokenizer, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def train(dataset):
    return dataset.split("train")


def equal(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("tokens_BT", "labels_BT", "doc_ids_BT")
    )


def check_rows(batch, bos=2):
    """Labels follow inputs within a document; document ids change where a document starts."""
    for tokens, labels, doc_ids in zip(
        batch.tokens_BT.numpy(), batch.labels_BT.numpy(), batch.doc_ids_BT.numpy(), strict=True
    ):
        length = int((doc_ids > 0).sum())
        assert (doc_ids[length:] == 0).all()
        assert (labels[length:] == IGNORED).all()
        assert doc_ids[0] == 1
        starts = tokens[1:length] == bos
        assert np.array_equal(np.diff(doc_ids[:length]), starts)
        inside = labels[: length - 1] != IGNORED
        assert np.array_equal(inside, ~starts)
        assert np.array_equal(labels[: length - 1][inside], tokens[1:length][inside])


def test_shapes_types_and_document_borders(train):
    batch = PackedText(train, 4, 1000, seed=0).next()
    for tensor in (batch.tokens_BT, batch.labels_BT, batch.doc_ids_BT):
        assert tensor.shape == (4, 1000)
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    check_rows(batch)
    assert batch.doc_ids_BT.max() > 1
    assert (batch.labels_BT != 2).all()


def test_an_epoch_holds_every_sequence_once_in_its_own_order(train):
    source = PackedText(train, 1, 64, seed=3)
    count = (train.token_count - 1) // 64
    whole = train.read(0, count * 64).reshape(-1, 64)
    epochs = [[source.next().tokens_BT[0].numpy() for _ in range(count)] for _ in range(2)]
    for epoch in epochs:
        assert sorted(map(tuple, epoch)) == sorted(map(tuple, whole))
    assert not all(np.array_equal(a, b) for a, b in zip(*epochs, strict=True))


def test_the_seed_decides_the_order(train):
    first = PackedText(train, 4, 64, seed=1).next()
    assert equal(first, PackedText(train, 4, 64, seed=1).next())
    assert not equal(first, PackedText(train, 4, 64, seed=2).next())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 23), st.integers(1, 9), st.data())
def test_ranks_read_every_sequence_once_an_epoch(train, ranks, batch_size, sequences, steps, data):
    def reader(part, parts, size):
        return PackedText(train, size, 16, 5, sequences, part=part, parts=parts)

    readers = [reader(part, ranks, batch_size) for part in range(ranks)]
    alone, read = reader(0, 1, ranks * batch_size), []
    for _ in range(steps):
        rows = [i for r in readers for i in r.next().extras[SEQUENCE_INDICES].tolist()]
        assert rows == alone.next().extras[SEQUENCE_INDICES].tolist()
        read += rows
        assert all(r.state() == alone.state() for r in readers)
    for start in range(0, len(read) - sequences + 1, sequences):
        assert sorted(read[start : start + sequences]) == list(range(sequences))
    # Another number of ranks goes on where these stopped.
    others = data.draw(st.integers(1, 7))
    again = [reader(part, others, 2) for part in range(others)]
    for r in again:
        r.load_state(alone.state())
    joined = [i for r in again for i in r.next().extras[SEQUENCE_INDICES].tolist()]
    whole = reader(0, 1, 2 * others)
    whole.load_state(alone.state())
    assert joined == whole.next().extras[SEQUENCE_INDICES].tolist()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 5), st.integers(1, 3000), st.integers(0, 40), st.integers(0, 2**32))
def test_a_restored_position_goes_on_with_the_same_batches(train, batch_size, seq_len, steps, seed):
    source = PackedText(train, batch_size, seq_len, seed)
    for _ in range(steps):
        source.next()
    state = json.loads(json.dumps(source.state()))
    other = PackedText(train, batch_size, seq_len, seed=0)
    other.load_state(state)
    for _ in range(3):
        batch = source.next()
        check_rows(batch)
        assert equal(batch, other.next())


@pytest.mark.parametrize(
    "state",
    [{}, {"seed": 0, "epoch": 0, "position": 10**9}, {"seed": 0, "epoch": -1, "position": 0}],
)
def test_an_impossible_position_is_refused(train, state):
    with pytest.raises(DataError, match="is not a position in train"):
        PackedText(train, 2, 64, seed=0).load_state(state)


def test_a_sequence_longer_than_the_data_names_both_numbers(train):
    with pytest.raises(DataError, match=rf"seq_len 99999999.*{train.token_count} tokens"):
        PackedText(train, 1, 99_999_999, seed=0)
    with pytest.raises(DataError, match="at least 1"):
        PackedText(train, 0, 64, seed=0)


@pytest.mark.parametrize("seq_len", [7, 64, 1000, 10**6])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_evaluation_predicts_every_token_once(dataset, tokenizer, batch_size, seq_len):
    split = dataset.split("heldout")
    labels = []
    for batch in eval_batches(split, batch_size, min(seq_len, 2 * split.token_count)):
        check_rows(batch)
        labels.append(batch.labels_BT[batch.labels_BT != IGNORED].numpy())
    labels = np.concatenate(labels)
    whole = split.read(0, split.token_count)
    assert np.array_equal(labels, whole[whole != 2])
    assert tokenizer.token_bytes()[labels].sum() == split.byte_count


def test_evaluation_of_a_part_is_spread_over_the_split(dataset):
    split = dataset.split("train")
    whole = [row for batch in eval_batches(split, 4, 32) for row in batch.tokens_BT]
    part = [row for batch in eval_batches(split, 4, 32, max_tokens=320) for row in batch.tokens_BT]
    assert len(part) == 10
    places = [next(n for n, w in enumerate(whole) if torch.equal(w, row)) for row in part]
    assert places == [n * len(whole) // 10 for n in range(10)]
    assert len(list(eval_batches(split, 64, 32, max_tokens=1))) == 1


@pytest.mark.parametrize("rows", [0, 3, 40, 41, 100])
def test_how_often_each_sequence_was_read_is_known_without_reading(train, rows):
    count = 20
    source = PackedText(train, 1, 16, seed=5, sequences=count)
    read = np.zeros(count, int)
    for _ in range(rows):
        read[source.next().extras[SEQUENCE_INDICES]] += 1
    assert np.array_equal(times_read(count, rows, seed=5), read)
