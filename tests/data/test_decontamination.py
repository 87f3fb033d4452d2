"""Text of benchmarks is taken out of a corpus, and the check afterwards finds none."""

import gzip
import json
import random
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from gemmule.data import benchmark_texts
from gemmule.data.benchmark_texts import Benchmark
from gemmule.data.decontamination import Decontaminator, word_spans
from gemmule.data.ngrams import N, NgramIndex, words
from gemmule.data.recipe.decontaminate import DecontaminateSettings
from gemmule.data.recipe.facts import facts
from gemmule.data.sources import Document
from gemmule.errors import ConfigError, DataError

SAILING = "the a sea ship captain said never wind old and of to under red sail harbour"
VOCABULARY = SAILING.split()
QUESTION = (
    "Which of these animals, in the opinion of Professor İnci Özgür, has the longest beak of all: "
    "a heron, a stork, or a pelican?"
)


def sentence(draw: random.Random, length: int) -> str:
    return " ".join(draw.choice(VOCABULARY) for _ in range(length))


def corpus(items: list[str], seed: int = 0) -> list[str]:
    """Texts of several lines, every third with an item, or a part of 13 words, on one of them."""
    draw = random.Random(seed)
    texts = []
    for n in range(60):
        lines = [sentence(draw, draw.randrange(2, 40)) for _ in range(6)]
        if n % 3 == 0:
            item = draw.choice(items).split()
            start = draw.randrange(len(item) - N + 1)
            part = " - ".join(item[start : start + draw.choice((N, len(item)))]).upper()
            lines[draw.randrange(6)] += f"\n{part}, {sentence(draw, 3)}"
        texts.append("\n".join(lines))
    return texts


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    sequence = words(text)
    return {tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)}


def items() -> list[str]:
    draw = random.Random(3)
    return [QUESTION, *(f"Question {n}: {sentence(draw, 15 + n)}?" for n in range(20))]


@pytest.mark.parametrize("n", [5, N])
def test_documents_and_lines(n: int) -> None:
    index = NgramIndex({"birds": items()[:1], "ships": items()[1:]}, n)
    known = {
        "birds": grams(items()[0], n),
        "ships": set().union(*(grams(i, n) for i in items()[1:])),
    }
    texts = corpus(items())
    whole = Decontaminator(index).apply(texts)
    lines = Decontaminator(index, whole=False).apply(texts)
    shared = 0
    for text, without, rest in zip(texts, whole, lines, strict=True):
        names = tuple(name for name, of in known.items() if grams(text, n) & of)
        assert without.benchmarks == names
        assert set(rest.benchmarks) >= set(names)
        assert without.text == (None if names else text)
        if not names:
            assert rest.text == text
            continue
        shared += 1
        assert rest.text is None or not grams(rest.text, n) & (known["birds"] | known["ships"])
        # Lines go whole, and those without any of the words stay.
        kept = (rest.text or "").splitlines()
        assert set(kept) <= set(text.splitlines())
        touched = [line for line in text.splitlines() if line not in kept]
        assert len(touched) < 6 or n == 5
    assert shared >= 20


def test_one_by_one_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    index = NgramIndex({"all": items()})
    texts = corpus(items(), seed=2)
    for whole in (True, False):
        decontaminator = Decontaminator(index, whole)
        at_once = decontaminator.apply(texts)
        assert [decontaminator.apply([text])[0] for text in texts] == at_once
        with monkeypatch.context() as patch:
            patch.setattr("gemmule.data.word_hashes.BYTES_AT_ONCE", 700)
            assert decontaminator.apply(texts) == at_once


def test_words_around_a_gap_do_not_make_an_item() -> None:
    item = sentence(random.Random(1), 20)
    first, last = item.split()[:10], item.split()[10:]
    index = NgramIndex({"outer": [item], "inner": ["x y z"] * 3 + [" ".join("bcdefghijklmnop")]})
    text = "\n".join([" ".join(first), " ".join("bcdefghijklmnop"), " ".join(last), "the end"])
    (result,) = Decontaminator(index, whole=False).apply([text])
    assert result.benchmarks == ("inner", "outer")
    assert result.text == "the end"
    (nothing,) = Decontaminator(index, whole=False).apply([text.removesuffix("the end")])
    assert nothing.text is None


@settings(deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("aZ9_ .\x01\nİΣẞ"))))
def test_places_of_words(text: str) -> None:
    spans = word_spans(text)
    assert len(spans) == len(words(text))
    assert all(0 <= start < end <= len(text) for start, end in spans)
    if len(text.lower()) == len(text):
        assert [text[a:b].lower() for a, b in spans] == re.findall(r"[^\W_]+", text.lower())


def records(path: Path) -> Path:
    rows = [{"question": item, "choices": {"text": ["one", "two"], "n": 3}} for item in items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_of_benchmarks(tmp_path: Path) -> None:
    (read,) = benchmark_texts.read(records(tmp_path / "birds.jsonl"))
    assert (read.name, len(read.texts)) == ("birds.jsonl", 21)
    assert read.texts[0] == f"{QUESTION} one two"
    (tmp_path / "plain.txt").write_text("two\nlines\n")
    assert benchmark_texts.read(tmp_path / "plain.txt")[0].texts == ("two\nlines\n",)
    with gzip.open(tmp_path / "table.csv.gz", "wt") as file:
        file.write("question,answer\nwhy?,because\n")
    assert benchmark_texts.read(tmp_path / "table.csv.gz")[0].texts == ("why? because",)

    collected = [Benchmark("A", benchmark_texts.digest(["x", "y"]), ("x", "y"))]
    benchmark_texts.write(tmp_path / "all.json", collected)
    assert benchmark_texts.read(tmp_path / "all.json") == collected
    changed = (tmp_path / "all.json").read_text().replace('"y"', '"z"')
    (tmp_path / "all.json").write_text(changed)
    with pytest.raises(DataError, match="the texts of A are not those"):
        benchmark_texts.read(tmp_path / "all.json")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "half.jsonl").write_text('{"a": "b"}\n{"a": \n')
    (tmp_path / "book.pdf").write_bytes(b"%PDF-1.4")
    for name, message in (
        ("", "is a folder: .* gemmule decontamination --data-dir"),
        ("empty.jsonl", "no text"),
        ("half.jsonl", "not read completely"),
        ("book.pdf", "PDF files"),
        ("missing.jsonl", r"missing\.jsonl cannot be read: No such file"),
    ):
        with pytest.raises(DataError, match=message):
            benchmark_texts.read(tmp_path / name)


def test_the_stage(tmp_path: Path) -> None:
    path = records(tmp_path / "birds.jsonl")
    chosen = DecontaminateSettings(benchmarks=(path,))
    chosen.fit(tmp_path / "fitted")
    stage = chosen.open(tmp_path / "fitted")
    (entry,) = stage.about()["benchmarks"]
    assert stage.about()["n"] == N
    assert (entry["name"], entry["items"], entry["too_short"]) == ("birds.jsonl", 21, 0)
    assert entry["sha256"] == benchmark_texts.read(path)[0].sha256
    documents = [Document(f"{n}", text) for n, text in enumerate(corpus(items()))]
    outcomes = stage.apply_batch(documents)
    assert [stage.apply(document) for document in documents] == outcomes
    assert {outcome.reason for outcome in outcomes} == {None, "text of a benchmark"}
    assert all(o.counts == ({} if o.text else {"birds.jsonl": 1}) for o in outcomes)

    path.unlink()  # what was fitted stays as it was
    chosen.fit(tmp_path / "fitted")
    assert chosen.open(tmp_path / "fitted").fingerprint == stage.fingerprint

    with pytest.raises(ConfigError, match="13"):
        DecontaminateSettings.parse({"benchmarks": ["b"], "n": 14}, "recipe")
    twice = DecontaminateSettings(benchmarks=(records(path), path))
    with pytest.raises(ConfigError, match="two benchmarks are named"):
        twice.fit(tmp_path / "twice")


def test_what_a_card_says() -> None:
    stages = [
        {"name": "redact", "fingerprint": "a"},
        {"name": "decontaminate", "fingerprint": "b", "n": 9, "benchmarks": [{"name": "A"}]},
    ]
    funnel = {
        "redact": {"dropped": {}, "counts": {"e-mail address, replaced": 3}},
        "decontaminate": {"dropped": {"text of a benchmark": [2, 500]}, "counts": {"A": 2}},
    }
    assert facts({"recipe": {"stages": stages, "funnel": funnel}}) == {
        "decontaminated": {"n": 9, "benchmarks": [{"name": "A"}], "dropped": 2},
        "redacted": {"e-mail address, replaced": 3},
    }
    assert facts({"recipe": {"stages": [], "funnel": {}}}) == facts({"name": "x"}) == {}
