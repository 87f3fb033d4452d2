"""13-grams shared with training text, against sets of tuples."""

import random
import re
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gemmule.data import ngrams, word_hashes
from gemmule.data.dataset import Dataset
from gemmule.data.ngrams import N, NgramIndex, Overlap, training_text, words
from gemmule.data.prepare import prepare
from gemmule.data.word_hashes import WordHashes
from gemmule.model.tokenizer import Tokenizer

SAILING = "the a sea ship captain said never wind old and of to under red sail harbour"
VOCABULARY = SAILING.split()
PLANTED = (
    "The person who wrote THIS question, in 2024, did not expect to find it (again) in the "
    "training_text of a model!"
)


def training_texts() -> list[str]:
    pick = random.Random(5)
    texts = [" ".join(pick.choice(VOCABULARY) for _ in range(n)) for n in (5, 12, 13, 400) * 10]
    texts[7] = f"begin. {PLANTED.replace(' ', chr(10))} end."
    texts[11] = "Größe und Maß – «für» naïve Ωμέγα: eins zwei drei vier fünf sechs sieben acht neun"
    # Half of a passage each: no 13 words in a row of it are in one document.
    texts[20] = "one two three four five six seven eight nine"
    texts[21] = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    return texts


@pytest.fixture(scope="module")
def corpus(pieces: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("corpus") / "text"
    folder.mkdir()
    for n, text in enumerate(training_texts()):
        (folder / f"{n:03d}.txt").write_text(f"{text}\n")
    return prepare(folder, pieces, folder.parent / "data", validation=0.01, heldout=0.01)


def train_texts(corpus: Dataset) -> list[str]:
    split = corpus.split("train")
    return [corpus.tokenizer.decode(split.document(n)) for n in range(split.document_count)]


def grams(text: str) -> set[tuple[str, ...]]:
    sequence = re.findall(r"[^\W_]+", text.lower())
    return {tuple(sequence[i : i + N]) for i in range(len(sequence) - N + 1)}


def overlaps(corpus: Dataset, texts: dict[str, list[str]]) -> dict[str, Overlap]:
    index = NgramIndex(texts)
    for chunk, _ in training_text(corpus.split("train"), corpus.tokenizer):
        index.search(chunk)
    return index.overlaps()


def expected(corpus: Dataset, texts: list[str]) -> dict[int, int]:
    known = set().union(*map(grams, train_texts(corpus)))
    shared = {i: len(grams(text) & known) for i, text in enumerate(texts)}
    return {i: count for i, count in shared.items() if count}


@pytest.fixture(params=[2**18, 37], ids=["at once", "in pieces"])
def pieces_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "_TOKENS_AT_ONCE", request.param)
    monkeypatch.setattr(word_hashes, "BYTES_AT_ONCE", 8 * request.param)


@pytest.mark.usefixtures("pieces_of")
def test_planted_text_is_found_and_nothing_else(corpus: Dataset) -> None:
    assert any("THIS" in text for text in train_texts(corpus))
    texts = [
        "an introduction " + PLANTED.upper().replace(" ", " -- "),
        "nothing of this sentence was ever in any training text that someone made up for tests",
        "too short to be judged",
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
        "MASS GRÖßE UND MAß FÜR NAÏVE ΩΜΈΓΑ EINS ZWEI DREI VIER FÜNF SECHS SIEBEN ACHT NEUN",
        "",
    ]
    of_tasks = overlaps(corpus, {"task": texts, "empty": []})
    overlap = of_tasks["task"]
    assert overlap.shared == expected(corpus, texts)
    assert overlap.contaminated == [0, 4]
    assert (overlap.documents, overlap.too_short) == (6, 2)
    assert of_tasks["empty"].shared == {}
    share = overlap.json()["share"]
    assert share["n"] == 4
    assert share["value"] == 0.5
    assert of_tasks["empty"].json()["share"] is None


@pytest.mark.usefixtures("pieces_of")
def test_counts_are_those_of_sets(corpus: Dataset) -> None:
    pick = random.Random(1)
    documents = [text for text in train_texts(corpus) if len(text) > 1000]
    texts = []
    for _ in range(120):
        document = pick.choice(documents).split()
        start = pick.randrange(max(1, len(document) - 10))
        middle = document[start : start + pick.randrange(30)]
        around = [pick.choice(VOCABULARY) for _ in range(8)]
        texts.append(" ".join([*around, *middle, *around, *middle]))
    half = len(texts) // 2
    of_tasks = overlaps(corpus, {"a": texts[:half], "b": texts[half:]})
    assert of_tasks["a"].shared == expected(corpus, texts[:half])
    assert of_tasks["b"].shared == expected(corpus, texts[half:])
    assert 20 < len(of_tasks["a"].shared) < half


def test_equal_hashes_are_not_enough(corpus: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    plain = WordHashes.grams

    def coarse(text: WordHashes, n: int) -> Any:
        return plain(text, n) & np.uint64(0x8000000000000007)

    monkeypatch.setattr(WordHashes, "grams", coarse)
    texts = [PLANTED, "nothing of this was in the text that the model has read before it was asked"]
    assert overlaps(corpus, {"t": texts})["t"].contaminated == [0]


@settings(deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from("aZ9_ .\x01\n"))))
def test_words_are_letters_and_digits(text: str) -> None:
    assert words(text) == re.findall(r"[^\W_]+", text.lower())


def test_breaks_in_a_benchmark_mean_nothing(corpus: Dataset) -> None:
    text = PLANTED.replace(" ", "\x01")
    assert overlaps(corpus, {"t": [text]})["t"].contaminated == [0]


def test_the_decoder_is_the_tokenizers(corpus: Dataset) -> None:
    decode: Callable[[Any], bytes] = ngrams.bulk_decoder(corpus.tokenizer)
    split = corpus.split("train")
    for n in range(12):
        text = decode(split.document(n))
        assert text == b" \x01 " + corpus.tokenizer.decode_bytes(split.document(n))
