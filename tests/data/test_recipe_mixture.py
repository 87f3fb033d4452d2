"""Sources of one folder that a recipe made, mixed; and several folders as one split."""

import json
import random

import numpy as np
import pytest

from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.mixture.mixed_text import MixedText
from gemmule.data.mixture.schedule import Schedule
from gemmule.data.mixture.settings import MixtureSource
from gemmule.data.mixture.spans import Span, SpannedSplit
from gemmule.data.packed_text import sequence_count
from gemmule.data.prepare import prepare
from gemmule.data.recipe.run import run_recipe
from gemmule.data.recipe.settings import Recipe
from gemmule.errors import DataError


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """A folder of two sources, of upper and of lower case."""
    top = tmp_path_factory.mktemp("recipe")
    for name, letters in (("upper", "ABCDEFG"), ("lower", "abcdefg")):
        with (top / f"{name}.jsonl").open("w") as f:
            for n in range(60):
                pick = random.Random(f"{name} {n}")
                words = ["".join(pick.choices(letters, k=5)) for _ in range(12 + n % 9)]
                f.write(json.dumps({"text": " ".join(words)}) + "\n")
    recipe = Recipe.parse(
        {
            "name": "both",
            "sources": [
                {"name": "upper", "path": top / "upper.jsonl", "license": "CC0-1.0"},
                {"name": "lower", "path": top / "lower.jsonl", "license": "MIT"},
            ],
            "normalize": {},
            "split": {"validation": 0.2, "heldout": 0.2},
        }
    )
    return run_recipe(recipe, tokenizer, top / "data", workers=1)


def both(folder):
    return [
        MixtureSource(path=folder.path, source="upper", weight=3),
        MixtureSource(path=folder.path, source="lower", weight=1),
    ]


def test_each_source_has_its_own_documents(folder, tokenizer):
    mixed = MixedDataset.open_all(both(folder))
    assert list(mixed.sources) == ["upper", "lower"]
    assert [data.licence for data in mixed.sources.values()] == ["CC0-1.0", "MIT"]
    for name in ("train", "validation", "heldout"):
        whole = folder.split(name)
        parts = [data.split(name) for data in mixed.sources.values()]
        for part, test in zip(parts, (str.isupper, str.islower), strict=True):
            texts = [tokenizer.decode(part.document(n)) for n in range(part.document_count)]
            assert texts
            assert all(map(test, texts))
            ids = part.read(0, part.token_count)
            documents = [part.document(n) for n in range(part.document_count)]
            assert np.array_equal(ids, np.concatenate(documents))
            starts = np.flatnonzero(ids == tokenizer.bos_id)
            assert part.document_starts().tolist() == starts.tolist()
            assert len(list(part.document_names())) == part.document_count
        assert sum(p.token_count for p in parts) == whole.token_count
        # The recipe keeps its sources in order, so that both together are the folder's own split.
        joined = mixed.split(name)
        assert np.array_equal(joined.read(0, len(joined)), whole.read(0, len(whole)))
        assert np.array_equal(joined.document_starts(), whole.document_starts())
        assert list(joined.document_names()) == list(whole.document_names())
    by_license = mixed.manifest["splits"]["train"]["tokens_by"]["license"]
    own = {k: d.split("train").token_count for k, d in mixed.sources.items()}
    assert by_license == {"CC0-1.0": own["upper"], "MIT": own["lower"]}


def test_a_mixture_of_the_sources_reads_them_by_their_weights(folder, tokenizer):
    sources = both(folder)
    splits = [d.split("train") for d in MixedDataset.open_all(sources).sources.values()]
    windows = [sequence_count(split, 16) for split in splits]
    schedule = Schedule(sources, (), windows, steps=8, batch_size=4)
    text = MixedText(splits, schedule, 4, 16, seed=1)
    for _ in range(8):
        batch = text.next()
        shown = ["".join(tokenizer.decode(row).split()) for row in batch.tokens_BT]
        assert sum(map(str.isupper, shown)) == 3
        assert sum(map(str.islower, shown)) == 1


def test_any_range_of_a_joined_split_is_read(folder):
    whole = folder.split("train")
    half = whole.document_starts()[whole.document_count // 2]
    middle = whole.document_count // 2
    spans = [
        Span(whole, range(middle, whole.document_count), int(half), whole.token_count),
        Span(whole, range(middle), 0, int(half)),
    ]
    turned = SpannedSplit("train", spans)
    expected = np.roll(whole.read(0, len(whole)), -int(half))
    picks = random.Random(0)
    for _ in range(50):
        start = picks.randrange(len(whole) + 3)
        stop = start + picks.randrange(300)
        assert np.array_equal(turned.read(start, stop), expected[start:stop])
        assert len(turned.read_mask(start, stop)) == len(expected[start:stop])
    with pytest.raises(DataError, match="no document"):
        turned.document(whole.document_count)


def test_a_source_that_is_not_there(folder, corpus_folder, tokenizer, tmp_path):
    with pytest.raises(DataError, match="has no source 'uper'; did you mean 'upper'"):
        MixedDataset.open_all([MixtureSource(path=folder.path, source="uper")])
    plain = prepare(corpus_folder, tokenizer, tmp_path / "plain")
    with pytest.raises(DataError, match="has no source 'web'; no recipe made it"):
        MixedDataset.open_all([MixtureSource(path=plain.path, source="web")])
