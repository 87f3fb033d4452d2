"""Rows of whole documents: nothing is cut, nothing is lost, and the packing is always the same."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemmule import files
from gemmule.data import whole_documents
from gemmule.data.dataset import Dataset, Split
from gemmule.data.packed_text import PackedText, batch_of, eval_batches, sequence_count
from gemmule.data.prepare import describe_split
from gemmule.data.shards import write_shard
from gemmule.errors import DataError
from gemmule.losses.labels import IGNORED

SEQ_LEN = 16
LENGTHS = [5, 17, 3, 9, 18, 12, 6, 7, 7, 16, 4, 11]  # 18 does not fit: 17 positions


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Documents of rising ids; of each, the second half is trained."""
    (tmp_path / "shards").mkdir()
    documents = [[2, *range(500, 500 + n - 2), 1] for n in LENGTHS]
    masks = [[i >= n // 2 for i in range(n)] for n in LENGTHS]
    entries = [
        write_shard(
            tmp_path,
            f"shards/train-0000{n}.tokens",
            documents[n::2],
            [str(i) for i in range(n, len(LENGTHS), 2)],
            {"bytes": 0, "text_sha256": ""},
            1000,
            masks[n::2],
        )
        for n in range(2)
    ]
    return Split("train", tmp_path, describe_split(entries), np.dtype("<u2"), True)


def labels_of(split: Split) -> list[tuple[int, ...]]:
    """The labels of each document that fits."""
    bounds = np.append(split.document_starts(), split.token_count)
    results = []
    for start, stop in itertools.pairwise(bounds):
        if stop - start - 1 <= SEQ_LEN:
            ids, mask = split.read(start, stop), split.read_mask(start, stop)
            results.append(tuple(np.where(mask, ids, IGNORED)[1:].tolist()))
    return sorted(results)


def documents_in(batch: Any) -> list[tuple[int, ...]]:
    results = []
    for labels, doc_ids in zip(batch.labels_BT, batch.doc_ids_BT, strict=True):
        for number in range(1, int(doc_ids.max()) + 1):
            results.append(tuple(labels[doc_ids == number].tolist()))
    return results


def test_every_document_that_fits_is_whole_in_one_row(split: Split) -> None:
    count = sequence_count(split, SEQ_LEN)
    batch = batch_of(split, np.arange(count), SEQ_LEN)
    assert sorted(documents_in(batch)) == labels_of(split)
    packing = whole_documents.pack(split, SEQ_LEN)
    assert packing.left_out == (2,)  # the third of the first shard
    assert packing.summary()["left_out"] == 1
    assert packing.filled == pytest.approx((batch.doc_ids_BT > 0).float().mean().item())
    assert packing.filled > 0.85


def test_every_document_begins_with_its_own_bos(split: Split) -> None:
    batch = batch_of(split, np.arange(sequence_count(split, SEQ_LEN)), SEQ_LEN)
    starts = torch.diff(batch.doc_ids_BT, dim=1, prepend=torch.zeros(len(batch.tokens_BT), 1)) > 0
    assert torch.equal(batch.tokens_BT == split.bos_id, starts)


def test_evaluation_and_training_read_the_same_rows(split: Split) -> None:
    source, count = PackedText(split, 1, SEQ_LEN, seed=3), sequence_count(split, SEQ_LEN)
    trained = [d for _ in range(count) for d in documents_in(source.next())]
    evaluated = [d for batch in eval_batches(split, 4, SEQ_LEN) for d in documents_in(batch)]
    assert sorted(trained) == sorted(evaluated) == labels_of(split)


def test_documents_that_are_all_too_long_are_refused(split: Split) -> None:
    with pytest.raises(DataError, match="each of the 12 documents of train is longer than seq_len"):
        PackedText(split, 1, 1, seed=0)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_best_fit_loses_nothing_and_never_overfills(sizes: list[int]) -> None:
    rows = whole_documents.best_fit(sizes, 40)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    loads = [sum(sizes[item] for item in row) for row in rows]
    assert all(load <= 40 for load in loads)
    # Two rows of a decreasing best fit never fit into one.
    assert all(a + b > 40 for n, a in enumerate(loads) for b in loads[:n])


def test_best_fit_takes_the_tightest_row() -> None:
    assert whole_documents.best_fit([7, 5, 3, 5], 10) == [[0, 2], [1, 3]]


def test_a_text_split_is_cut_as_before(prepared: Path) -> None:
    split = Dataset.open(prepared).split("train")
    assert not split.whole_documents
    assert sequence_count(split, 24) == (split.token_count - 1) // 24
    assert "whole_documents" not in files.read_json(prepared / "manifest.json")
