"""Records as people have them: told by content, in any compression, one bad row at a time."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import read, read_log

from gemmule.data import csv_rows, json_values, unusable
from gemmule.data.read_log import ReadLog
from gemmule.data.sources import find_source
from gemmule.data.unusable import MalformedError, Unusable
from gemmule.errors import DataError

TEXTS = ["one", "two\nlines, “quoted”", "", "海の向こう", 'a "b" \\ c', " spaces "]
ROWS = [{"text": text, "id": n} for n, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS).encode()
PRETTY = json.dumps(ROWS, indent=2, ensure_ascii=False).encode()


def zstd(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


COMPRESS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


@pytest.mark.parametrize("content", [LINES, ARRAY, PRETTY, b"\xef\xbb\xbf" + ARRAY])
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".ndjson", ".JSON"])
def test_json_is_told_by_its_content(tmp_path, content, compression, suffix):
    path = tmp_path / f"c4-train.00000-of-00001{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](content))
    assert read(path) == (TEXTS, {})
    assert read(tmp_path) == (TEXTS, {})


def test_members_of_gzip_follow_one_another(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(LINES[:9]) + gzip.compress(LINES[9:]))
    assert read(tmp_path)[0] == TEXTS


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF16_LE])
@pytest.mark.parametrize("content", [LINES, ARRAY, PRETTY])
def test_json_in_utf16(tmp_path, content, mark):
    (tmp_path / "a.json").write_bytes(mark + content.decode().encode("utf-16-le"))
    texts, log = read_log(tmp_path)
    assert texts == TEXTS
    assert log.decoded == {"UTF-16": 1}


@pytest.mark.parametrize("form", ["lines", "array"])
def test_json_in_latin1_if_the_whole_file_is(tmp_path, form):
    rows = [{"text": text} for text in ("plain", "Die Straße nach Köln", "déjà vu", "fin")]
    data = json.dumps(rows, ensure_ascii=False)
    if form == "lines":
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.json").write_bytes(data.encode("cp1252"))
    texts, log = read_log(tmp_path)
    assert texts == [row["text"] for row in rows]
    assert log.decoded == {"Windows-1252": 1}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b'{"text": "one"}', ["one"]),
        (b'{"text":\n "one"}\n{"text":\n"two"}', ["one", "two"]),  # pretty-printed, in a row
        (b'{"text": "one"}{"text": "two"}', ["one", "two"]),  # without line ends
        (b'[{"text": "one"}]\n[{"text": "two"}]', ["one", "two"]),
        (b'[{"text": "one"},\n {"text": "two"}]', ["one", "two"]),
        (b"[]", []),
        (b"  \n ", []),
        (b"", []),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_other_arrangements_of_json(tmp_path, content, texts, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert read(path)[0] == texts


def test_a_field_within_fields(tmp_path):
    rows = [
        {"meta": {"body": "one"}},
        {"meta": {"body": None}},
        {"meta": {}},
        {"meta": 3},
        {"meta.body": "dotted name"},
        {"meta": [{"body": "each"}, {"body": "element"}]},
    ]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    texts, left_out = read(path, field="meta.body")
    assert texts == ["one", "dotted name", "each", "element"]
    assert left_out == {"field 'meta.body' is not text": 1, "no field 'meta.body'": 2}
    path.write_text(json.dumps({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}, indent=1))
    assert read(path, field="data.text")[0] == ["a", "b"]
    with pytest.raises(DataError, match=r"no field 'text'; its fields are version, data: name"):
        read(path)


def test_what_is_not_text_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": ["a"]}, {"text": {"b": 1}}, {"text": 3}, {"text": null}, 7, "x"]')
    assert read(path) == (
        [],
        {
            "field 'text' is a list, not text": 1,
            "field 'text' is an object, not text": 1,
            "field 'text' is not text": 2,
            "JSON value that is not an object": 2,
        },
    )


@pytest.mark.parametrize(
    "content",
    [
        ARRAY[:-20],
        ARRAY[:-1],
        b'[{"text": "one"} {"text": "two"}]',
        b"[" * 100_000,
        b'[{"a": tru}]',
    ],
)
def test_a_broken_array_is_a_clear_error(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(
        DataError, match=r"a\.json is not valid JSON \(.*near character .*cut short"
    ):
        read(tmp_path / "a.json")


def test_settings_in_a_folder_of_code_are_counted(tmp_path):
    (tmp_path / "main.ts").write_text("let a = 1\n")
    (tmp_path / "package.json").write_text('{"name": "x", "version": "1"}')
    (tmp_path / "tsconfig.json").write_text('{\n  // a comment\n  "a": 1,\n}')
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "numbers.json").write_text("[1, 2]")
    texts, log = read_log(tmp_path)
    assert texts == ["let a = 1\n"]
    assert log.left_out == {
        "files without the field 'text'": 2,
        "not valid JSON": 1,
        "JSON value that is not an object": 1,
    }
    assert log.examples["files without the field 'text'"] == ["list.csv", "package.json"]
    assert log.examples["not valid JSON"] == ["tsconfig.json"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        )
    ),
    st.integers(1, 30),
    st.booleans(),
)
def test_arrays_are_streamed_as_json_reads_them(values, size, pretty):
    text = json.dumps(values, ensure_ascii=False, indent=1 if pretty else None)
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(json_values.values(blocks)) == values
    in_a_row = "\n".join(json.dumps(value) for value in values if not isinstance(value, list))
    blocks = [in_a_row[i : i + size] for i in range(0, len(in_a_row), size)]
    assert list(json_values.values(blocks)) == [v for v in values if not isinstance(v, list)]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from('[]{}",:\\ \n1a'), max_size=60), st.integers(1, 9))
def test_a_damaged_array_gives_values_or_one_error(text, size):
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    try:
        list(json_values.values(blocks))
    except MalformedError as e:
        assert "near character" in str(e)


def test_one_enormous_record_is_skipped_and_counted(tmp_path, monkeypatch):
    for module in (json_values, csv_rows, unusable):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 3_000_000)
    large = json.dumps({"text": 'x\\"[{' * 1_000_000})
    rows = ['{"text": "one"}', large, '{"text": "two"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    (tmp_path / "b.json").write_text("[" + ", ".join(rows) + "]")
    texts, left_out = read(tmp_path)
    assert texts == ["one", "two", "one", "two"]
    assert left_out == {Unusable.TOO_LARGE.value: 2}
    (tmp_path / "c.csv").write_text("text\n" + "y" * 5_000_000)
    with pytest.raises(DataError, match="larger than"):
        read(tmp_path / "c.csv")


def test_a_large_array_needs_little_memory(tmp_path):
    path = tmp_path / "a.json"
    with path.open("w") as f:
        f.write("[")
        for n in range(40_000):
            f.write(("," if n else "") + json.dumps({"text": f"{n} " * 200}))
        f.write("]")
    assert path.stat().st_size > 40e6
    tracemalloc.start()
    try:
        assert sum(1 for _ in find_source(path).documents(ReadLog())) == 40_000
        assert tracemalloc.get_traced_memory()[1] < 15e6
    finally:
        tracemalloc.stop()


CSV = 'id,text\n1,"one, with ""quotes"""\n2,"two\nlines"\n\n3,\n4,海\n'
CSV_TEXTS = ['one, with "quotes"', "two\nlines", "", "海"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_as_spreadsheets_write_it(tmp_path, end, codec):
    (tmp_path / "a.csv").write_bytes(CSV.replace("\n", end).encode(codec))
    assert read(tmp_path) == ([text.replace("\n", end) for text in CSV_TEXTS], {})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id;text\n1;one, two\n"),
        ("a.csv", 'sep=;\nid;text\n1;"one, two"\n'),
        ("a.csv", "id\ttext\n1\tone, two\n"),
        ("a.csv", "a,b|text\n1|one, two\n"),
        ("a.tsv", "id, text\t text \n1\tone, two\n"),
        ("a.csv", ' id , text\n1,"one, two"\n'),
        ("A.CSV", 'text\n"one, two"'),
        ("a.csv", 'sep=",text\n1,"one, two"\n'),
    ],
)
def test_delimiters(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read(tmp_path) == (["one, two"], {})


def test_blank_lines_before_the_header_of_csv(tmp_path):
    (tmp_path / "a.csv").write_text("\n\r\nid,text\n1,one\n")
    assert read(tmp_path / "a.csv") == (["one"], {})


def test_csv_in_latin1(tmp_path):
    (tmp_path / "a.csv").write_bytes("Nr;text\n1;Grüße aus Köln\n".encode("cp1252"))
    texts, log = read_log(tmp_path)
    assert texts == ["Grüße aus Köln"]
    assert log.notes == ["decoded from Windows-1252: 1 (a.csv)"]


def test_rows_of_csv_that_cannot_be_used(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"id,text\n1,one\n2,a, comma\n3\n4,\xff\xfe\n5,nul \0 byte\n")
    texts, left_out = read(path)
    assert texts == ["one", "\udcff\udcfe", "nul \0 byte"]  # lone surrogates are dropped later
    assert left_out == {"CSV row with another number of columns": 2}
    with pytest.raises(DataError, match=r"no field 'body'; its fields are id, text"):
        read(path, field="body")


def test_a_field_of_csv_may_be_large(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"' + "long " * 100_000 + '"\n')
    limit = csv.field_size_limit()
    assert read(tmp_path)[0] == ["long " * 100_000]
    assert csv.field_size_limit() == limit  # which is everybody's


def test_csv_agrees_with_the_csv_module(tmp_path):
    rng = random.Random(0)
    rows = [
        ["".join(rng.choices('ab,;\t"\n\r é', k=rng.randrange(6))) or "x" for _ in range(3)]
        for _ in range(500)
    ]
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["a", "text", "c"], *rows])
    for size in (1, 7, 1000):
        text = out.getvalue()
        blocks = [text[i : i + size] for i in range(0, len(text), size)]
        assert [row["text"] for row in csv_rows.rows(blocks, None, "text")] == [r[1] for r in rows]


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)


def test_rows_of_parquet_that_are_not_utf8_are_left_out_one_by_one(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    data = [b"row %d" % n for n in range(41)]
    data[7] = b"bad \xff"
    kept = [d.decode() for n, d in enumerate(data) if n != 7]
    for n, kind in enumerate((pyarrow.string(), pyarrow.large_string())):
        binary = pyarrow.binary() if kind == pyarrow.string() else pyarrow.large_binary()
        column = pyarrow.array(data, binary).view(kind)
        parquet(tmp_path / f"{n}.parquet", text=column)
        parquet(tmp_path / f"{n}d.parquet", text=column.dictionary_encode())
        nested = pyarrow.StructArray.from_arrays([column], ["body"])
        parquet(tmp_path / f"{n}s.parquet", text=nested)
        for name, field in ((f"{n}", "text"), (f"{n}d", "text"), (f"{n}s", "text.body")):
            assert read(tmp_path / f"{name}.parquet", field=field) == (
                kept,
                {"row that is not UTF-8": 1},
            )
    parquet(tmp_path / "b.parquet", text=pyarrow.array(data, pyarrow.binary()))
    assert read(tmp_path / "b.parquet") == (kept, {"row that is not UTF-8": 1})


def test_lists_in_parquet_are_named(tmp_path):
    parquet(tmp_path / "a.parquet", text=[["a", "b"], None], m=[[{"c": "x"}, {"c": "y"}], []])
    assert read(tmp_path)[1] == {
        "field 'text' is a list, not text": 1,
        "field 'text' is not text": 1,
    }
    assert read(tmp_path, field="m.c")[0] == ["x", "y"]


@pytest.mark.parametrize("form", ["file", "stream"])
@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
def test_arrow_files_and_streams(tmp_path, form, suffix):
    pyarrow = pytest.importorskip("pyarrow")
    ipc = pytest.importorskip("pyarrow.ipc")
    bad = pyarrow.array([b"one", b"\xff", b"two"]).view(pyarrow.string())
    table = pyarrow.table({"id": [1, 2, 3], "text": bad})
    path = tmp_path / f"data-00000-of-00001{suffix}"
    new = ipc.new_file if form == "file" else ipc.new_stream
    with new(str(path), table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path) == (["one", "two"], {"row that is not UTF-8": 1})
    with pytest.raises(DataError, match=r"no field 'body'; its fields are id, text"):
        read(path, field="body")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable Arrow file"):
        read(path)


def test_arrow_data_that_point_outside_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    ipc = pytest.importorskip("pyarrow.ipc")
    path = tmp_path / "a.arrow"
    table = pyarrow.table({"text": ["12345678", "x"]})
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    offsets = b"\0\0\0\0\x08\0\0\0"
    assert path.read_bytes().count(offsets) == 1
    path.write_bytes(path.read_bytes().replace(offsets, b"\0\0\0\0\xff\xff\xff\x0f"))
    with pytest.raises(DataError, match="not a readable Arrow file"):
        read(tmp_path)


def test_arrow_indices_that_point_outside_are_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    ipc = pytest.importorskip("pyarrow.ipc")
    path = tmp_path / "a.arrow"
    indices = pyarrow.array([0, 1, 0x01020304], pyarrow.int32())
    words = pyarrow.array(["a", "b"])
    column = pyarrow.DictionaryArray.from_arrays(indices, words, safe=False)
    table = pyarrow.table({"text": column})
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="not a readable Arrow file"):
        read(path)


def test_a_folder_that_the_datasets_library_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    texts = [f"row {n}" for n in range(50)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "d", num_shards=2)
    (tmp_path / "d" / "cache-0123456789abcdef.arrow").write_bytes(b"anything")
    assert read(tmp_path / "d") == (
        texts,
        {"files without the field 'text'": 2, "caches of the datasets library": 1},
    )


@pytest.mark.parametrize(
    "content", [b"FEA1" + b"\0" * 20, b"", b"\0" * 64, b"ARROW1\0\0", b"\xff\xff\xff\xff\0\0\0\0"]
)
def test_other_things_named_arrow_are_clear_errors(tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.arrow").write_bytes(content)
    try:
        texts, _ = read(tmp_path)
        assert texts == []
    except DataError as e:
        assert "Feather" in str(e) or "not a readable Arrow file" in str(e) or "no field" in str(e)


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json.xz"])
def test_compression_is_told_by_content(tmp_path, compression, name):
    (tmp_path / name).write_bytes(COMPRESS[compression](LINES))
    assert read(tmp_path) == read(tmp_path / name) == (TEXTS, {})


def test_a_table_under_the_name_of_other_records(tmp_path):
    parquet(tmp_path / "a.jsonl", text=TEXTS)
    assert read(tmp_path / "a.jsonl") == (TEXTS, {})


@pytest.mark.parametrize("rows", ['1,"two\n2,three\n', '1,"two'])
def test_a_quote_that_is_never_closed(tmp_path, rows):
    (tmp_path / "a.csv").write_text(f"id,text\n0,zero\n{rows}")
    with pytest.raises(DataError, match=r"a\.csv is not valid CSV \(the quote before .* never"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text('id,"text')
    with pytest.raises(DataError, match="never closed"):
        read(tmp_path / "a.csv")


def test_names_of_fields_are_shown_short(tmp_path):
    (tmp_path / "a.csv").write_text("1," + "a whole text " * 1000 + "\n2,another\n")
    with pytest.raises(DataError, match="no field 'text'; its fields are 1, a whole") as e:
        read(tmp_path / "a.csv")
    assert len(str(e.value)) < 500
