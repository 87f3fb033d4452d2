"""Which passages are drawn, and how they are counted by source and by reading."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gemmule.data.dataset import Dataset
from gemmule.data.packed_text import SEQUENCE_INDICES, PackedText, sequence_count, times_read
from gemmule.errors import ConfigError
from gemmule.evals.memorization import probes
from gemmule.evals.memorization.probes import draw
from gemmule.evals.memorization.settings import Settings
from gemmule.evals.memorization.sources import TOP, UNKNOWN, shown_names, sources
from gemmule.evals.training_data import Reading


@pytest.fixture(params=[2**22, 700], ids=["at once", "in parts"])
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_AT_ONCE", request.param)


@pytest.mark.usefixtures("parts")
def test_every_place_is_drawn_once_when_all_are_wanted(prepared: Path) -> None:
    split = Dataset.open(prepared).split("train")
    probes = draw(split, 10**9, 20, seed=0)
    documents = [split.document(n) for n in range(split.document_count)]
    expected = [(n, p) for n, d in enumerate(documents) for p in range(len(d) - 2 - 20 + 1)]
    assert list(zip(probes.documents.tolist(), probes.positions.tolist(), strict=True)) == expected
    assert probes.places == probes.allowed == len(probes) == len(expected)
    tokens = probes.tokens(slice(0, 500))
    for i in range(500):
        n, p = expected[i]
        assert np.array_equal(tokens[i], documents[n][1 + p : 21 + p])
    assert not np.isin(tokens, [split.bos_id, 1]).any()


@pytest.mark.usefixtures("parts")
def test_a_draw_is_seeded_and_even(prepared: Path) -> None:
    split = Dataset.open(prepared).split("train")
    first, again, other = (draw(split, 300, 20, seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert len(set(first.starts.tolist())) == 300
    everything = draw(split, 10**9, 20, 0)
    share = Counter(everything.documents.tolist())
    long = max(share, key=lambda n: share[n])
    drawn = sum(int((draw(split, 300, 20, seed).documents == long).sum()) for seed in range(20))
    expected = 6000 * share[long] / everything.places
    assert abs(drawn - expected) < 5 * expected**0.5


def test_documents_too_short_give_nothing(prepared: Path) -> None:
    split = Dataset.open(prepared).split("train")
    probes = draw(split, 10, 10**6, 0)
    assert (len(probes), probes.places) == (0, 0)


@pytest.mark.parametrize(("rows", "seq_len"), [(11, 24), (200, 24), (40, 100)])
def test_only_what_was_read_whole_is_drawn(prepared: Path, rows: int, seq_len: int) -> None:
    """Against what a source really gives: every token a target, the prompt's first an input."""
    split = Dataset.open(prepared).split("train")
    windows = sequence_count(split, seq_len)
    source = PackedText(split, 1, seq_len, seed=9)
    seen = np.zeros(split.token_count + 1, int)
    for _ in range(rows):
        window = int(source.next().extras[SEQUENCE_INDICES][0])
        seen[window * seq_len + 1 : (window + 1) * seq_len + 1] += 1
    reading = Reading(times_read(windows, rows, seed=9), seq_len)
    everything = draw(split, 10**9, 30, 0).starts
    # A passage's first token is read where the second is a target.
    expected = np.array([seen[s + 1 : s + 30].min() for s in everything])
    assert np.array_equal(reading.of_spans(everything, 30), expected)
    probes = draw(split, 10**9, 30, 0, [reading])
    assert np.array_equal(probes.starts, everything[expected > 0])
    assert probes.places == len(everything)


def test_documents_can_be_left_out(prepared: Path) -> None:
    split = Dataset.open(prepared).split("train")
    probes = draw(split, 10**9, 20, 0, leave_out=range(30, split.document_count))
    assert probes.documents.max() < 30


def test_few_files_are_sources_and_many_go_by_folder() -> None:
    few = ["a.jsonl#0", "a.jsonl#17", "b/c.txt#0", None]
    assert sources(few, "corpus") == ["a.jsonl", "a.jsonl", "b/c.txt", UNKNOWN]
    many = [f"{folder}/{n}.txt#0" for folder in ("x", "y/z") for n in range(20)] + ["top.txt#0"]
    assert Counter(sources(many, "corpus")) == {"x/": 20, "y/": 20, TOP: 1}
    modules = [f"m{n}.py" for n in range(30)] + ["asyncio/events.py", "pydoc_data/topics.py:if"]
    assert sources(modules, "stdlib")[-2:] == ["asyncio/", "pydoc_data/"]
    topics = ["pydoc_data/topics.py:if", "pydoc_data/topics.py:for", "this.py"]
    assert sources(topics, "stdlib") == ["pydoc_data/topics.py"] * 2 + ["this.py"]


def test_a_patterns_folder_is_not_shown() -> None:
    names = ["/home/somebody/notes/a.txt#0", "/home/somebody/notes/b/c.txt#3", None]
    assert sources(names, "/home/somebody/notes/**/*.txt") == ["a.txt", "b/c.txt", UNKNOWN]
    shown = list(shown_names(names, "/home/somebody/notes/**/*.txt"))
    assert shown == ["a.txt#0", "b/c.txt#3", None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probes": 0}, "probes is 0; it must be at least 1"),
        ({"prompt_tokens": -1}, "prompt_tokens is -1"),
        ({"continuation_tokens": 0}, "continuation_tokens is 0"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"edit_fraction": 1.0}, "edit_fraction is 1.0"),
    ],
)
def test_settings_out_of_range(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**changes)


def test_a_tenth_of_fifty_is_five() -> None:
    assert Settings().max_edits == 5
    assert Settings(continuation_tokens=30).max_edits == 3
    assert Settings(continuation_tokens=9).max_edits == 0
