import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest
from reading import read, read_log

from gemmule import text_encoding
from gemmule.data import stdlib, text_blocks
from gemmule.data.compression import read_blocks
from gemmule.data.read_log import ReadLog
from gemmule.data.sources import find_source, whole_text
from gemmule.errors import DataError, MissingExtraError


def test_folder_is_read_in_order_with_other_types_left_out_and_counted(tmp_path):
    (tmp_path / "b.md").write_text("two")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_bytes(b"one\r\n")
    (tmp_path / "c.TXT").write_text("three")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("no")
    assert read(tmp_path) == (["one\r\n", "two", "three"], {"files of another type": 1})
    source = find_source(tmp_path)
    assert source.log.left_out == {"files of another type": 1}
    assert [file.key for file in source.files] == ["a/x.py", "b.md", "c.TXT"]
    assert source.name == tmp_path.name


def test_file_and_glob(tmp_path):
    (tmp_path / "one").write_text("no suffix, but named by hand")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    assert read(tmp_path / "one")[0] == ["no suffix, but named by hand"]
    assert read(tmp_path / "*.txt")[0] == ["a", "b"]
    assert read(tmp_path / "**" / "b.*")[0] == ["b"]


def test_binary_and_invalid_utf8_are_left_out_with_a_reason(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine \xc3\xa9")
    (tmp_path / "b.txt").write_bytes(b"latin \xe9 one")
    (tmp_path / "c.txt").write_bytes(b"cut \xc3")
    (tmp_path / "d.txt").write_bytes(b"\x00\x01")
    (tmp_path / "e.txt").write_bytes(b"\xef\xbb\xbfmark")
    texts, dropped = read(tmp_path)
    assert texts == ["fine é", "mark"]
    assert dropped == {"not UTF-8": 2, "binary (NUL bytes)": 1}


def test_a_huge_file_is_cut_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_blocks, "MAX_DOCUMENT_BYTES", 100_000)
    text = "é line of text\n" * 20_000
    (tmp_path / "a.txt").write_text(text)
    texts, _ = read(tmp_path)
    assert len(texts) > 3
    assert "".join(texts) == text


def test_text_in_other_encodings_is_decoded_and_counted(tmp_path):
    texts = ["plain\r\n", "Grüße aus Köln\n", "海は青い\n第 1 章\n"]
    for n, codec in enumerate(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"]):
        (tmp_path / f"{n}.txt").write_bytes(texts[n % 3].encode(codec))
    (tmp_path / "5.txt").write_bytes(texts[1].encode("cp1252"))
    (tmp_path / "6.txt").write_bytes("Привет, мир\n".encode("cp1251"))
    (tmp_path / "7.txt").write_bytes("x".encode("utf-16")[:-1])
    got, log = read_log(tmp_path)
    assert got == [texts[n % 3] for n in range(5)] + [texts[1]]
    assert log.decoded == {"UTF-16": 3, "UTF-32": 1, "Windows-1252": 1}
    assert log.left_out == {"not UTF-8": 1, "damaged UTF-16": 1}
    assert log.notes == [
        "decoded from UTF-16: 3 (0.txt, 1.txt, 2.txt)",
        "decoded from UTF-32: 1 (3.txt)",
        "decoded from Windows-1252: 1 (5.txt)",
    ]


@pytest.mark.parametrize("codec", ["utf-16", "cp1252", "utf-8"])
def test_a_huge_file_in_any_encoding_is_cut_while_it_is_read(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(text_blocks, "MAX_DOCUMENT_BYTES", 100_000)
    text = "Grüße aus Köln am Rhein\n" * 20_000
    for compress, name in ((bytes, "a.txt"), (gzip.compress, "b.txt.gz")):
        (tmp_path / name).write_bytes(compress(text.encode(codec)))
        texts, _ = read(tmp_path / name)
        assert len(texts) > 3
        assert "".join(texts) == text


def test_a_huge_file_that_changes_between_two_looks_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(text_blocks, "MAX_DOCUMENT_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("plain text " * 1000)
    told = text_encoding.encoding_of

    def overwritten(read):
        codec = told(read)
        path.write_bytes(b"\xff" * 5000)
        return codec

    monkeypatch.setattr(text_encoding, "encoding_of", overwritten)
    with pytest.raises(DataError, match=r"a\.txt changed while it was being read"):
        read(path)


def test_whole_text_of_what_people_name(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree")
    assert whole_text(tmp_path / "a.txt") == "one\ntwo\nthree"
    write_rows(tmp_path / "b.jsonl", [{"text": "four"}, {"text": "five"}])
    assert whole_text(tmp_path / "b.jsonl") == "four\n\nfive"
    assert whole_text(tmp_path) == "one\ntwo\nthree\n\nfour\n\nfive"
    (tmp_path / "c.bin").write_bytes(b"\0\1")
    with pytest.raises(DataError, match=r"no usable text in .*1 binary \(NUL bytes\)"):
        whole_text(tmp_path / "c.bin")
    code = (
        "import sys\nfrom pathlib import Path\nfrom gemmule.data.sources import whole_text\n"
        "print(whole_text(Path('/dev/stdin')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="from a pipe".encode("utf-16"), capture_output=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.decode().strip() == "from a pipe"


def test_compressed_text(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "b.py.bz2").write_bytes(bz2.compress(b"two"))
    (tmp_path / "c.MD.XZ").write_bytes(lzma.compress(b"three"))
    (tmp_path / "d.rst.zst").write_bytes(zstandard.compress(b"four"))
    (tmp_path / "e.tar.gz").write_bytes(gzip.compress(b"x"))
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"five"))
    assert read(tmp_path) == (
        ["one", "two", "three", "four"],
        {"not valid tar": 1, "files of another type": 1},
    )
    assert read(tmp_path / "f.gz")[0] == ["five"]
    for name in ("a.txt.gz", "b.py.bz2", "c.MD.XZ", "d.rst.zst"):
        path = tmp_path / name
        for damage in (path.read_bytes()[:-3], b"not compressed", path.read_bytes() + b"tail"):
            path.write_bytes(damage)
            if name in ("b.py.bz2", "c.MD.XZ") and damage.endswith(b"tail"):
                continue  # Python's readers ignore what follows
            with pytest.raises(DataError, match=r"damaged or cut short.*fetch it again"):
                read(path)


def test_a_frame_of_zstandard_that_expands_a_thousandfold_is_read_in_blocks(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(300_000_000)))
    assert path.stat().st_size < 100_000
    largest = max(map(len, read_blocks(path, ".zst")))
    assert largest < 150_000_000


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "x.png").write_bytes(b"x")])
def test_nothing_to_read_is_a_clear_error(tmp_path, make):
    make(tmp_path)
    with pytest.raises(DataError, match=r"no text in .*use text or source files"):
        find_source(tmp_path)


def test_missing_path_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="no file or folder at"):
        find_source(tmp_path / "absent")
    with pytest.raises(DataError, match="no text in"):
        find_source(tmp_path / "*.txt")


ROWS = [{"text": "one", "id": 1}, {"text": "two\n"}, {"id": 3}, {"text": None}]


def write_rows(path, rows, extra=b""):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode() + extra
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        half = len(data) // 2
        compress = zstandard.ZstdCompressor().compress
        data = compress(data[:half]) + compress(data[half:])  # two frames, cut in a line
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.ndjson"])
def test_json_lines(tmp_path, name):
    path = write_rows(tmp_path / name, ROWS, b'{"text": \n[1]\n\n\xff\n')
    assert read(path) == (
        ["one", "two\n"],
        {
            "no field 'text'": 1,
            "field 'text' is not text": 1,
            "malformed JSON line": 2,
            "JSON line that is not an object": 1,
        },
    )


def test_another_field_and_the_error_that_names_the_fields(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": "x", "rejected": "y"}])
    assert read(path, field="rejected")[0] == ["y"]
    with pytest.raises(DataError, match=r"no field 'text'; its fields are chosen, rejected"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_download_cut_short_is_a_clear_error(tmp_path, name):
    path = write_rows(tmp_path / name, [{"text": "x" * 1000, "n": n} for n in range(100)])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"damaged or cut short.*fetch it again"):
        read(path)
    path.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match="damaged or cut short"):
        read(path)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), path)
    assert read(path) == (["one", "two"], {"field 'text' is not text": 1})
    with pytest.raises(DataError, match=r"no field 'body'; its fields are text, n"):
        read(path, field="body")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(path)


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow.lib"), ("a.jsonl.zst", "zstandard")]
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "gemmule\[data\]"'):
        read(tmp_path / name)


def test_the_embedded_corpus_is_this_pythons_library():
    source = find_source(None)
    documents = list(source.documents(ReadLog()))
    keys = [d.key for d in documents]
    assert source.licence == "PSF-2.0"
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in source.name
    assert {"argparse.py", "json/decoder.py"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert not [k for k in keys if {"test", "tests", "site-packages"} & set(Path(k).parts)]
    assert 8e6 < sum(len(d.text) for d in documents) < 16e6
    assert all(d.split_key == d.key for d in documents)


def test_pydocs_topics_share_no_paragraph():
    text = "# head\ntopics = {'b': 'Same\\n  text\\n\\nOnly b\\n', 'a': 'Same text\\n\\nOnly a\\n'}"
    assert dict(stdlib.read_module("pydoc_data/topics.py", text)) == {
        "pydoc_data/topics.py:a": "Same text\n\nOnly a\n",
        "pydoc_data/topics.py:b": "Only b\n",
    }
    assert list(stdlib.read_module("abc.py", text)) == [("abc.py", text)]


def test_a_python_without_its_source_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="give your own corpus"):
        find_source(None)


def test_where_nothing_is_found_it_says_why(tmp_path):
    with pytest.raises(DataError, match=r"\(it is empty\)"):
        find_source(tmp_path)
    (tmp_path / ".git").mkdir()
    with pytest.raises(DataError, match=r"\(nothing to read but hidden files\)"):
        find_source(tmp_path)
    with pytest.raises(DataError, match=r"\(nothing matches it\)"):
        find_source(tmp_path / "*.txt")
    for url in ("https://example.com/a.jsonl", "hf://datasets/a/b"):
        with pytest.raises(DataError, match="is an address: download the file first"):
            find_source(Path(url))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.arrow", "a.txt.gz"])
def test_git_lfs_pointers_are_counted_and_no_text(tmp_path, name):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    (tmp_path / name).write_text(pointer)
    assert read(tmp_path) == read(tmp_path / name) == ([], {"Git LFS pointers": 1})
    with pytest.raises(DataError, match=r"no usable text.*1 Git LFS pointers .*run git lfs pull"):
        whole_text(tmp_path)
