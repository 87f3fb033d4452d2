"""Sorting on disk, and links between documents that share a key."""

import random
from pathlib import Path

import numpy as np
import pytest

from gemmule.data.near_duplicates import join, resolve
from gemmule.data.recipe.links import pairs_of
from gemmule.data.recipe.sorting import ENTRY, SortedRuns
from gemmule.errors import DataError


def filled(folder: Path, keys: np.ndarray, run_entries: int) -> SortedRuns:
    runs = SortedRuns(folder, run_entries * ENTRY.itemsize)
    for start in range(0, len(keys), 700):
        part = keys[start : start + 700]
        runs.add(part, part >> np.uint64(1), np.arange(start, start + len(part)))
    return runs


@pytest.mark.parametrize("distinct", [1, 50, 2**60])
@pytest.mark.parametrize("run_entries", [64, 1000, 10**6])
def test_sorted_whatever_fits_in_memory(tmp_path: Path, distinct: int, run_entries: int) -> None:
    keys = np.random.default_rng(0).integers(0, distinct, 5000).astype(np.uint64)
    runs = filled(tmp_path, keys, run_entries)
    blocks = list(runs.blocks())
    joined = np.concatenate(blocks)
    assert joined["key"].tolist() == sorted(keys.tolist())
    assert sorted(joined["document"].tolist()) == list(range(5000))
    assert (keys[joined["document"]] == joined["key"]).all()
    if run_entries == 1000:
        assert max(map(len, blocks)) <= 1024 * 5
    runs.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_sort(tmp_path: Path) -> None:
    assert list(SortedRuns(tmp_path).blocks()) == []


def test_a_damaged_run_is_an_error(tmp_path: Path) -> None:
    runs = filled(tmp_path, np.arange(3000, dtype=np.uint64), 1000)
    run = next(tmp_path.glob("run-*"))
    data = bytearray(run.read_bytes())
    data[ENTRY.itemsize * 500 : ENTRY.itemsize * 500 + 8] = b"\xff" * 8
    run.write_bytes(data)
    with pytest.raises(DataError, match="not sorted"):
        list(runs.blocks())


@pytest.mark.parametrize("run_entries", [40, 10**6])
def test_links_give_the_clusters_of_equal_keys(tmp_path: Path, run_entries: int) -> None:
    draw = random.Random(1)
    keys = np.array([draw.randrange(40) for _ in range(300)], np.uint64)
    cluster_of = np.arange(300)
    for pairs in pairs_of(filled(tmp_path, keys, run_entries).blocks()):
        join(cluster_of, pairs)
    resolve(cluster_of)
    first = {key: keys.tolist().index(key) for key in keys.tolist()}
    assert cluster_of.tolist() == [first[key] for key in keys.tolist()]


def test_equal_first_halves_alone_are_no_link(tmp_path: Path) -> None:
    runs = SortedRuns(tmp_path)
    same = np.zeros(3, np.uint64)
    runs.add(same, np.array([1, 2, 2], np.uint64), np.arange(3))
    assert np.concatenate(list(pairs_of(runs.blocks()))).tolist() == [[1, 2]]
