import json
import shutil
from collections import Counter

import numpy as np
import pytest

from gemmule.data.canaries import Canaries, add_canaries
from gemmule.data.corpus import SPLITS
from gemmule.data.dataset import Dataset
from gemmule.data.prepare import prepare
from gemmule.errors import DataError, OutputError


@pytest.fixture(scope="module")
def plain(corpus_folder, tokenizer, tmp_path_factory):
    return prepare(corpus_folder, tokenizer, tmp_path_factory.mktemp("plain") / "data")


@pytest.fixture(scope="module")
def planted(plain, tmp_path_factory):
    out = tmp_path_factory.mktemp("planted") / "data"
    return add_canaries(plain, out, repeats=(1, 3), each=2, tokens=30)


def test_canaries_are_repeated_as_often_as_asked(plain, planted):
    canaries = Canaries.of(planted)
    assert canaries.repeats == (1, 1, 3, 3)
    assert canaries.first == plain.split("train").document_count
    train = planted.split("train")
    assert train.document_count == canaries.first + 8
    texts = [tuple(train.document(n).tolist()) for n in canaries.documents]
    assert sorted(Counter(texts).values()) == [1, 1, 3, 3]
    for number, times in enumerate(canaries.repeats):
        text = tuple(train.document(canaries.document_of(number)).tolist())
        assert texts.count(text) == times
        assert (len(text), text[0], text[-1]) == (32, 2, 1)
        assert min(text[1:-1]) >= 473
    names = list(train.document_names())[canaries.first :]
    assert names == [f"canary-{n:04d}" for n in canaries.numbers]


def test_everything_else_stays_the_same(plain, planted):
    assert Canaries.of(plain) is None
    for name in SPLITS:
        before, after = plain.split(name), planted.split(name)
        count = before.token_count
        assert np.array_equal(before.read(0, count), after.read(0, count))
        entry = planted.manifest["splits"][name]
        assert sum(s["tokens"] for s in entry["shards"]) == entry["tokens"] == after.token_count
        assert sum(s["bytes"] for s in entry["shards"]) == entry["bytes"]
    assert planted.fingerprint != plain.fingerprint
    assert planted.manifest["canaries"]["added_to"] == plain.fingerprint
    assert (planted.name, planted.licence) == (plain.name, plain.licence)


def test_the_same_seed_plants_the_same(plain, planted, tmp_path):
    again = add_canaries(plain, tmp_path / "a", repeats=(1, 3), each=2, tokens=30)
    other = add_canaries(plain, tmp_path / "b", repeats=(1, 3), each=2, tokens=30, seed=1)
    assert again.fingerprint == planted.fingerprint != other.fingerprint


def test_preparing_the_same_text_does_not_return_the_canaries(corpus_folder, tokenizer, planted):
    with pytest.raises(OutputError, match=r"already holds data made from .*other settings"):
        prepare(corpus_folder, tokenizer, planted.path)


def test_impossible_arguments_are_refused(plain, planted, tmp_path):
    for wrong in ({"repeats": (0,)}, {"repeats": ()}, {"each": 0}, {"tokens": 1}, {"seed": -1}):
        with pytest.raises(DataError, match="must be at least"):
            add_canaries(plain, tmp_path / "x", **wrong)
    with pytest.raises(DataError, match="has canaries already"):
        add_canaries(planted, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used/precious.txt").write_text("keep me")
    with pytest.raises(OutputError, match="is in use"):
        add_canaries(plain, tmp_path / "used")
    assert (tmp_path / "used/precious.txt").read_text() == "keep me"


def test_a_folder_without_a_plan_or_names_will_do(plain, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(plain.path, bare)
    (bare / "plan.json").unlink()
    for record in (bare / "shards").glob("*.json"):
        record.unlink()
    made = add_canaries(Dataset.open(bare), tmp_path / "new", repeats=(2,), each=1, tokens=30)
    assert Canaries.of(made).documents == range(made.split("train").document_count)[-2:]
    names = list(made.split("train").document_names())
    assert names[-2:] == ["canary-0000", "canary-0000"]
    assert set(names[:-2]) == {None}
    json.dumps(made.manifest)
