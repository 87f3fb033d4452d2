import random

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from gemmule.data.corpus import SPLITS, assign_splits, read_corpus
from gemmule.data.sources import find_source
from gemmule.errors import DataError


def write(folder, texts):
    folder.mkdir(exist_ok=True)
    for n, text in enumerate(texts):
        (folder / f"{n:04}.txt").write_text(text)
    return folder


def splits_of(folder):
    return {text: split for split, text in read_corpus(find_source(folder)).texts()}


def test_duplicates_and_empty_documents_are_dropped_and_counted(tmp_path):
    folder = write(tmp_path / "c", [f"text {n % 30}" for n in range(60)] + [" \n", ""])
    (folder / "x.png").write_text("x")
    corpus = read_corpus(find_source(folder))
    assert corpus.log.left_out == {"duplicate": 30, "empty": 2, "files of another type": 1}
    assert sum(corpus.documents.values()) == 30
    texts = [text for _, text in corpus.texts()]
    assert sorted(texts) == sorted(f"text {n}" for n in range(30))
    assert sum(corpus.byte_counts.values()) == sum(map(len, texts))


def test_lone_surrogates_from_json_are_dropped(tmp_path):
    rows = [f'{{"text": "row {n}"}}' for n in range(30)] + ['{"text": "\\ud800"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert read_corpus(find_source(tmp_path)).log.left_out == {"holds a lone surrogate": 1}


def test_a_document_stays_in_its_split_when_others_come_and_files_are_renamed(tmp_path):
    before = splits_of(write(tmp_path / "a", [f"text {n}" for n in range(200)]))
    after = splits_of(write(tmp_path / "b", [f"text {n}" for n in reversed(range(300))]))
    assert set(before.values()) == set(SPLITS)
    assert all(after[text] == split for text, split in before.items())


def test_fractions_are_about_as_asked(tmp_path):
    folder = write(tmp_path / "a", [f"text {n}" for n in range(2000)])
    counts = read_corpus(find_source(folder), validation=0.1, heldout=0.2).documents
    assert counts["validation"] == pytest.approx(200, abs=50)
    assert counts["heldout"] == pytest.approx(400, abs=70)


@given(
    hnp.arrays(np.float64, st.integers(3, 40), elements=st.floats(0, 1, exclude_max=True)),
    st.floats(0.001, 0.4),
)
def test_no_split_is_empty_from_three_documents_on(positions, share):
    split = assign_splits(positions, share, share)
    assert set(split) == {0, 1, 2}


@given(st.lists(st.sampled_from([0.1, 0.5, 0.7, 0.75, 0.9]), min_size=3, max_size=40))
def test_documents_with_one_position_stay_together_where_that_is_possible(positions):
    split = assign_splits(np.array(positions), 0.01, 0.01)
    places = {p: {s for q, s in zip(positions, split, strict=True) if p == q} for p in positions}
    if len(places) >= 3:
        assert all(len(splits) == 1 for splits in places.values())


def test_few_documents_are_cut_into_sections_and_it_says_so(tmp_path):
    book = "".join(f"Line {n} of a book.\n\n" for n in range(30_000))
    corpus = read_corpus(find_source(write(tmp_path / "a", [book])))
    assert corpus.in_sections
    assert "cut into sections of about 64 kB" in corpus.notes[0]
    assert min(corpus.documents.values()) >= 1
    assert "".join(text for _, text in corpus.texts()) == book


@pytest.mark.parametrize("characters", ["海上的风很大船长说。", "海上的风很大", "กัปตันบอกว่า"])
def test_one_book_in_a_script_without_spaces(tmp_path, characters):
    rng = random.Random(0)
    book = "".join(rng.choices(characters, k=114_446))
    assert len(book.encode()) == 343_338
    corpus = read_corpus(find_source(write(tmp_path / "a", [book])))
    assert corpus.in_sections
    assert sum(corpus.documents.values()) >= 3
    assert "".join(text for _, text in corpus.texts()) == book


def test_what_was_left_out_is_in_the_error_when_too_little_remains(tmp_path):
    folder = write(tmp_path / "a", ["short"])
    for n in range(4):
        (folder / f"{n}.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"\(left out: 4 PDF files \(0\.pdf, .*, …\): convert them"):
        read_corpus(find_source(folder))


def test_records_without_the_field_list_their_fields(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.json").write_text('{"title": "x", "body": "y"}')
    with pytest.raises(DataError, match=r"no field 'text'; its fields are title, body: name the"):
        read_corpus(find_source(folder))
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"text {n}")
    assert read_corpus(find_source(folder)).log.left_out == {"files without the field 'text'": 3}
    with pytest.raises(DataError, match=r"no field 'note'; its fields are title, body: name the"):
        read_corpus(find_source(folder, field="note"))
    assert sum(read_corpus(find_source(folder, field="body")).documents.values()) == 31


def test_bytes_of_records_that_are_not_utf8_are_counted(tmp_path):
    rows = b"".join(b"%d,row %d\n" % (n, n) for n in range(30))
    (tmp_path / "a.csv").write_bytes(b"id,text\n" + rows + b"31,\xff\xfe\n")
    corpus = read_corpus(find_source(tmp_path))
    assert corpus.log.left_out == {"holds bytes that are not UTF-8": 1}
    assert sum(corpus.documents.values()) == 30


def test_enough_documents_are_not_cut(tmp_path):
    corpus = read_corpus(find_source(write(tmp_path / "a", [f"text {n}" for n in range(20)])))
    assert (corpus.in_sections, corpus.notes) == (False, [])


def test_too_little_text_says_how_much_is_needed(tmp_path):
    with pytest.raises(DataError, match=r"11 bytes of text, 1 document.*about 192 kB"):
        read_corpus(find_source(write(tmp_path / "a", ["hello world"])))


def test_nothing_usable_is_an_error_with_the_reasons(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\0")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(
        DataError, match=r"no usable text in .*1 binary \(NUL bytes\) \(a\.txt\); 1 not UTF-8 \(b"
    ):
        read_corpus(find_source(tmp_path))


@pytest.mark.parametrize("fractions", [(0, 0.1), (0.5, 0.5), (-1, 0.1), (0.1, 1)])
def test_impossible_fractions_are_refused(tmp_path, fractions):
    folder = write(tmp_path / "a", ["text"])
    with pytest.raises(DataError, match="fractions of the documents"):
        read_corpus(find_source(folder), *fractions)


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_a_source_that_changes_while_it_is_read_is_noticed(tmp_path, change):
    folder = write(tmp_path / "a", [f"text {n}" for n in range(30)])
    (folder / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    corpus = read_corpus(find_source(folder))
    rows = {"edit": "ac", "add": "abc", "remove": "a"}[change]
    (folder / "rows.jsonl").write_text("".join(f'{{"text": "{row}"}}\n' for row in rows))
    with pytest.raises(DataError, match="changed while it was being read"):
        list(corpus.texts())


def test_a_file_that_disappears_is_a_clear_error(tmp_path):
    folder = write(tmp_path / "a", [f"text {n}" for n in range(30)])
    corpus = read_corpus(find_source(folder))
    (folder / "0003.txt").unlink()
    with pytest.raises(DataError, match=r"cannot read .*0003\.txt: No such file"):
        list(corpus.texts())
