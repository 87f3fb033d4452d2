"""Bad benchmark files are named, with the line."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmule.errors import DataError
from gemmule.evals.benchmarks import checksums, local_files

DEEP = 100_000


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(content: str | bytes, name: str = "questions.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def test_lines_of_objects(write: Any) -> None:
    expected = [{"a": "x"}, {"a": "y", "b": 1}]
    text = '{"a": "x"}\n{"a": "y", "b": 1}\n'
    assert local_files.jsonl(write(text), {"a": str}) == expected
    for variant in (f"{text}\n\n", text.replace("\n", "\r\n"), f"\ufeff{text}", text.rstrip()):
        assert local_files.jsonl(write(variant), {"a": str}) == expected
    packed = write(gzip.compress(text.encode()), "questions.jsonl.gz")
    assert local_files.jsonl(packed, {"a": str}) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "x"}\n{"b": "x"}\n', r"questions\.jsonl:2: no field 'a' \(there are: b\)"),
        ('{"a": "x"}\n{"a": 1}\n', r":2: a is 1; expected text"),
        ('{"a": "x"}\n{"a": "x"\n', r":2: broken JSON .*expected an object"),
        ('{"a": "x"}\n\n{"a": "x"}\n', r":2: broken JSON"),
        ('{"a": "x"}\n["a"]\n', r":2: list; expected an object"),
        ('{"a": "x"}\n{"a": "\\ud800"}\n', r":2: half of a surrogate pair"),
        (b'{"a": "x"}\n{"a": "\xff"}\n', r":2: not UTF-8"),
        ('{"a": "x"}\n' + "[" * DEEP, r":2: broken JSON"),
        ('{"a": "x"}\n' + '{"a":' * DEEP, r":2: broken JSON"),
        ('{"a": ' + "1" * 5000 + "}", r":1: broken JSON"),
        ("", r"is empty"),
        ("\n \n", r"is empty"),
    ],
)
def test_broken_lines_are_named(write: Any, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        local_files.jsonl(write(content), {"a": str})


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(write: Any, encoding: str) -> None:
    path = write('{"a": "é"}\n'.encode(encoding))
    assert local_files.jsonl(path, {"a": str}) == [{"a": "é"}]


def test_true_is_no_number_and_one_is_not_true(write: Any) -> None:
    with pytest.raises(DataError, match=":1: n is True; expected a whole number"):
        local_files.jsonl(write('{"n": true}'), {"n": int})
    with pytest.raises(DataError, match=":1: n is 1; expected true/false"):
        local_files.jsonl(write('{"n": 1}'), {"n": bool})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"a": "x"},\n{"a" "x"}\n]', r"whole\.json:3: broken JSON"),
        ('{"a": "x"}', r"dict; expected a list of objects"),
        ('[{"a": "x"}, {}]', r":entry 2: no field 'a' \(there are: none\)"),
        ("[]", r"is empty"),
        ("[" * DEEP, r"nested too deeply"),
        ("[" + "1" * 5000 + "]", r"broken JSON"),
        ('[{"a": "\\udfff"}]', r"half of a surrogate pair"),
    ],
)
def test_broken_documents_are_named(write: Any, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        local_files.entries(write(content, "whole.json"), {"a": str})


def test_a_table_has_lines(write: Any) -> None:
    path = write('a,b\n1,"two\nlines"\n3,4\n', "t.csv")
    assert local_files.numbered_table(path, ("b",)) == [
        (3, {"a": "1", "b": "two\nlines"}),
        (4, {"a": "3", "b": "4"}),
    ]
    tabs = write("a\tb\n1\t2\n", "t.tsv")
    assert local_files.table(tabs, ("a", "b"), "\t") == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,c\n1,2\n", r"t\.csv:1: no column 'b' \(there are: a, c\)"),
        ("a,b\n1,2\n3\n", r":3: nothing in column 'b'"),
        ("a,b\n1,2,3\n", r":2: more fields than columns"),
        ('a,b\n1,2\n"3,4\n', r":3: unexpected end of data"),
        ("a,b\n" + "x" * 200_000 + ",2\n", r":2: field larger than"),
        (b"a,b\n1,\xe9\n", r":2: not UTF-8"),
        ("a,b\n", r"is empty"),
        ("", r"no column 'a'"),
    ],
)
def test_broken_tables_are_named(write: Any, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        local_files.table(write(content, "t.csv"), ("a", "b"))


def test_files_that_belong_together_must_be_equally_long(write: Any) -> None:
    one, other = write("x", "valid.jsonl"), write("x", "labels.lst")
    with pytest.raises(DataError, match=r"valid\.jsonl has 3 lines .*labels\.lst ends before.* 2$"):
        local_files.same_length(one, [1, 2, 3], other, [1])


def test_answers_out_of_range(write: Any) -> None:
    path = write("x")
    for wrong in (-1, 2):
        with pytest.raises(DataError, match=rf":7: gold is {wrong}; there are 2 choices"):
            local_files.index(path, 7, "gold", wrong, 2)
    for bad in (["x"], ["x", 1], ["x", " "], ["x"] * 27):
        with pytest.raises(DataError, match=r":7: choices is .*expected a list of 2 to 26"):
            local_files.options(path, 7, "choices", bad)


def test_what_is_no_archive_is_named(write: Any) -> None:
    whole = gzip.compress(b'{"a": "x"}\n' * 1000)
    broken = bytearray(whole)
    broken[12] ^= 0xFF
    for content in (b"not packed", whole[:-9], bytes(broken)):
        with pytest.raises(DataError, match=r"x\.gz: cannot be unpacked"):
            local_files.lines(write(content, "x.gz"))


def test_what_unpacks_to_far_too_much_is_refused(write: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(local_files, "_LARGEST", 1000)
    with pytest.raises(DataError, match="no benchmark does"):
        local_files.lines(write(gzip.compress(b"x" * 1001), "x.gz"))


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder\.jsonl cannot be read: Is a directory"):
        local_files.jsonl(tmp_path / "folder.jsonl", {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        local_files.jsonl(tmp_path / "file/x.jsonl", {})
    with pytest.raises(FileNotFoundError):  # which leaves the benchmark out
        local_files.jsonl(tmp_path / "none.jsonl", {})
    with pytest.raises(FileNotFoundError) as e:
        list(local_files.files_in(tmp_path, "*.csv"))
    assert e.value.filename == str(tmp_path / "*.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(write: Any) -> None:
    path = write("x")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        local_files.lines(path)


def test_a_sum_is_git_s(write: Any) -> None:
    # git hash-object of "hello\n"
    assert local_files.git_blob_sha1(write("hello\n")) == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_the_known_sums_are_in_order() -> None:
    assert list(checksums.KNOWN) == sorted(checksums.KNOWN)
    assert all(len(s) == 40 and int(s, 16) for s in checksums.KNOWN.values())


def test_a_split_in_another_s_place_is_refused(write: Any, monkeypatch: Any) -> None:
    train = write("train", "train.jsonl")
    test = write("test", "test.jsonl")
    known = {
        "train.jsonl": local_files.git_blob_sha1(train),
        "test.jsonl": local_files.git_blob_sha1(test),
    }
    monkeypatch.setattr(checksums, "KNOWN", known)
    result, notes = checksums.examine(test.parent, [train, test])
    assert [f["known"] for f in result] == [True, True]
    assert notes == ()
    test.write_bytes(train.read_bytes())
    with pytest.raises(DataError, match=r"test\.jsonl has the content of train\.jsonl"):
        checksums.examine(test.parent, [train, test])


def test_the_same_content_may_be_known_in_two_places(write: Any, monkeypatch: Any) -> None:
    paths = [write("same", "a.txt"), write("same", "b.txt")]
    monkeypatch.setattr(checksums, "KNOWN", {p.name: local_files.git_blob_sha1(p) for p in paths})
    result, _ = checksums.examine(paths[0].parent, paths)
    assert [f["known"] for f in result] == [True, True]


def test_other_files_are_used_and_said_to_be_others(write: Any) -> None:
    paths = [write(name, name) for name in ("a", "b", "c")]
    result, notes = checksums.examine(paths[0].parent, paths[:1])
    assert result == [
        {"file": "a", "git_blob": local_files.git_blob_sha1(paths[0]), "known": False}
    ]
    assert notes == ("a is not the published file",)
    assert checksums.examine(paths[0].parent, paths)[1] == (
        "3 files are not the published ones: a, …, c",
    )
