"""Near-duplicates: MinHash against its definition, and what they do to the split."""

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from gemmule.data import minhash
from gemmule.data.corpus import NearDuplicates, read_corpus
from gemmule.data.minhash import BANDS, HASHES, ROWS, SHINGLE, BandKeys
from gemmule.data.near_duplicates import clusters
from gemmule.data.sources import find_source
from gemmule.data.word_hashes import JoinedTexts, normalize

WORDS = [f"word{n}" for n in range(2000)]


def document(rng: random.Random, length: int) -> list[str]:
    return rng.choices(WORDS, k=length)


def changed(rng: random.Random, words: list[str], share: float) -> list[str]:
    """The words with a share of them replaced."""
    words = list(words)
    for n in rng.sample(range(len(words)), round(share * len(words))):
        words[n] = rng.choice(WORDS)
    return words


def jaccard(a: list[str], b: list[str]) -> float:
    sets = [{tuple(w[n : n + SHINGLE]) for n in range(len(w) - SHINGLE + 1)} for w in (a, b)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def keys(texts: list[str]) -> np.ndarray:
    hasher = BandKeys()
    for text in texts:
        hasher.add(text)
    return hasher.keys()


def plain_minima(shingles: list[int]) -> list[int]:
    """The definition, over Python integers: bins, minima, then the empty bins."""
    bins: dict[int, list[int]] = defaultdict(list)
    for shingle in set(shingles):
        value = int(minhash.mixed(np.array([(shingle + 1) % 2**64], np.uint64))[0]) >> 1
        bins[((shingle >> 32) * HASHES) >> 32].append(value)
    row = []
    for place in range(HASHES):
        choices = [place, *minhash._CHOICES[place].tolist()]
        row.append(min(bins[next(c for c in choices if c in bins)]))
    return row


@pytest.mark.parametrize("length", [5, 6, 12, 60, 400, 5000])
def test_minima_are_their_definition(length: int) -> None:
    rng = random.Random(length)
    texts = [" ".join(document(rng, length)).encode() for _ in range(4)]
    joined = JoinedTexts([normalize(text) for text in texts])
    hashes, documents, _ = joined.whole_grams(SHINGLE)
    got = minhash.minima(joined)
    for n in range(len(texts)):
        assert got[n].tolist() == plain_minima([int(h) for h in hashes[documents == n]])


@pytest.mark.parametrize("length", [40, 1000])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.08])
def test_minima_agree_as_often_as_the_sets_are_similar(length: int, share: float) -> None:
    rng = random.Random(0)
    pairs = []
    for _ in range(300):
        words = document(rng, length)
        pairs.append((words, changed(rng, words, share)))
    rows = [
        minhash.minima(JoinedTexts([" ".join(pair[side]).encode() for pair in pairs]))
        for side in (0, 1)
    ]
    agree = float((rows[0] == rows[1]).mean())
    assert agree == pytest.approx(np.mean([jaccard(a, b) for a, b in pairs]), abs=0.02)


def test_bands_find_what_the_formula_says() -> None:
    rng = random.Random(1)
    pairs = []
    for _ in range(400):
        words = document(rng, 600)
        pairs.append((words, changed(rng, words, 0.035)))
    found = keys([" ".join(words) for pair in pairs for words in pair]).reshape(-1, 2, BANDS)
    expected = np.mean([1 - (1 - jaccard(a, b) ** ROWS) ** BANDS for a, b in pairs])
    share = float((found[:, 0] == found[:, 1]).any(1).mean())
    assert 0.3 < expected < 0.9
    assert share == pytest.approx(expected, abs=0.08)
    # Documents that have nothing to do with one another share no key.
    assert not (found[1:, 0] == found[:-1, 0]).any()


def test_keys_do_not_depend_on_the_company(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    texts = [" ".join(document(rng, rng.randrange(300))) for _ in range(50)]
    together = keys(texts)
    monkeypatch.setattr(minhash, "BYTES_AT_ONCE", 500)
    assert (keys(texts) == together).all()
    assert (np.concatenate([keys([text]) for text in texts]) == together).all()


def test_short_documents_are_near_duplicates_of_none() -> None:
    assert not keys(["one two three four", "", "…"]).any()
    assert keys(["one two three four five"]).all()


def test_scripts_without_spaces_have_shingles_of_characters() -> None:
    # From the beginning of the Analects, with a changed character.
    text = "學而時習之不亦說乎有朋自遠方來不亦樂乎人不知而不慍不亦君子乎" * 3
    both = keys([text, text.replace("慍", "怒", 1) + "。"])
    assert both.all()
    assert (both[0] == both[1]).any()


def test_clusters_are_connected_components() -> None:
    rng = np.random.default_rng(0)
    keys_DB = rng.integers(0, 400, (200, 3)).astype(np.uint64)
    neighbours = {
        a: {b for b in range(200) if ((keys_DB[a] == keys_DB[b]) & (keys_DB[a] != 0)).any()}
        for a in range(200)
    }
    expected = list(range(200))
    for start in range(200):
        reached, open_ = {start}, [start]
        while open_:
            new = neighbours[open_.pop()] - reached
            reached |= new
            open_ += new
        expected[start] = min(reached)
    assert clusters(keys_DB).tolist() == expected
    assert 5 < len(set(expected)) < 195


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """120 documents, 40 of which have two near copies."""
    rng = random.Random(3)
    for n in range(120):
        words = document(rng, 300)
        for copy in range(3 if n < 40 else 1):
            text = " ".join(changed(rng, words, 0.004 * copy))
            (tmp_path / f"{n:03}-{copy}.txt").write_text(text)
    return tmp_path


def splits_of(folder: Path, near_duplicates: NearDuplicates) -> dict[str, dict[str, str]]:
    """The split of each copy of each document."""
    corpus = read_corpus(find_source(folder), 0.2, 0.2, near_duplicates)
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for split, kept in corpus.kept():
        name, copy = kept.key.split(".")[0].split("-")
        splits[name][copy] = split
    return splits


def test_near_duplicates_are_on_one_side_of_the_split(folder: Path) -> None:
    ignored = splits_of(folder, "ignore")
    assert sum(len(set(copies.values())) > 1 for copies in ignored.values()) > 10
    grouped = splits_of(folder, "group")
    assert sum(map(len, grouped.values())) == 200
    assert all(len(set(copies.values())) == 1 for copies in grouped.values())
    assert {split for copies in grouped.values() for split in copies.values()} == {
        "train", "validation", "heldout"
    }  # fmt: skip


def test_one_of_the_near_duplicates_stays(folder: Path) -> None:
    grouped, dropped = splits_of(folder, "group"), splits_of(folder, "drop")
    assert all(len(copies) == 1 for copies in dropped.values())
    assert len(dropped) == 120
    # It is where the whole cluster was.
    for name, copies in dropped.items():
        assert set(copies.items()) < set(grouped[name].items()) or len(grouped[name]) == 1
    corpus = read_corpus(find_source(folder), near_duplicates="drop")
    assert corpus.log.left_out["near-duplicate"] == 80
    assert corpus.near_duplicates == 120
    assert "120 documents are near-duplicates" in corpus.notes[0]


def test_the_one_that_stays_does_not_depend_on_names(folder: Path) -> None:
    before = {d.text for _, d in read_corpus(find_source(folder), near_duplicates="drop").kept()}
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"{hash(path.read_text()) % 997}-{path.name}"))
    after = {d.text for _, d in read_corpus(find_source(folder), near_duplicates="drop").kept()}
    assert before == after
