"""Token files of datatrove and OLMo: read as data folders, written, and refused when damaged."""

import gzip
import itertools
import json
import struct

import numpy as np
import pytest

from gemmule.data.corpus import SPLITS
from gemmule.data.dataset import Dataset
from gemmule.data.prepare import prepare
from gemmule.data.shards import write_shard
from gemmule.data.token_shards.export import export_datatrove
from gemmule.data.token_shards.source import find_tokens
from gemmule.data.token_shards.token_file import TokenFile
from gemmule.errors import DataError, OutputError


@pytest.fixture(scope="module")
def text_data(corpus_folder, tokenizer, tmp_path_factory):
    return prepare(corpus_folder, tokenizer, tmp_path_factory.mktemp("text") / "data")


@pytest.fixture
def documents(corpus_folder, tokenizer):
    return [tokenizer.encode(p.read_text()) for p in sorted(corpus_folder.iterdir())[:40]]


def write_ds(path, documents, token="H"):
    """As datatrove lays it out."""
    flat = [n for ids in documents for n in ids]
    path.write_bytes(struct.pack(f"<{len(flat)}{token}", *flat))
    ends = np.cumsum([len(ids) for ids in documents]).tolist()
    path.with_name(path.name + ".index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))


def write_olmo(path, documents, dtype="<u2", table=True):
    """As OLMo and dolma lay it out: raw ids, and a table of documents next to them."""
    np.array([n for ids in documents for n in ids], dtype).tofile(path)
    if table:
        ends = np.cumsum([0, *map(len, documents)]).tolist()
        with gzip.open(path.with_suffix(".csv.gz"), "wt") as f:
            for n, (start, end) in enumerate(itertools.pairwise(ends)):
                f.write(f"{start},{end},id-{n},part.json.gz,{n}\n")


def stored(data):
    """The documents of a data folder without <bos> and <eos>."""
    splits = [data.split(name) for name in SPLITS]
    return sorted(s.document(n).tolist()[1:-1] for s in splits for n in range(s.document_count))


def test_what_was_exported_is_read_back_as_the_same_dataset(text_data, tokenizer, tmp_path):
    about = export_datatrove(text_data, tmp_path / "ds")
    again = prepare(find_tokens(tmp_path / "ds", tokenizer), tokenizer, tmp_path / "data")
    assert again.fingerprint == text_data.fingerprint
    for name in SPLITS:
        entry, split = about["splits"][name][0], again.split(name)
        assert (entry["tokens"], entry["documents"]) == (split.token_count, split.document_count)
        assert split.byte_count == text_data.split(name).byte_count
    assert export_datatrove(text_data, tmp_path / "ds") == about
    (tmp_path / "ds/export.json").unlink()  # as if it had been killed: it is written again
    assert export_datatrove(text_data, tmp_path / "ds") == about
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is in use"):
        export_datatrove(text_data, tmp_path / "other")


@pytest.mark.parametrize("form", ["ds", "ds of 4 bytes", "npy", "npy without a table", "npy of u4"])
def test_both_formats_give_the_documents_that_were_written(form, documents, tokenizer, tmp_path):
    ended = [[*ids, tokenizer.eos_id] for ids in documents]
    folder = tmp_path / "tokens"
    (folder / "deep").mkdir(parents=True)
    half = len(ended) // 2
    if form.startswith("ds"):
        token = "I" if "4" in form else "H"
        write_ds(folder / "00000_tokens.ds", ended[:half], token)
        write_ds(folder / "deep/00001_tokens.ds", [[tokenizer.bos_id, *e] for e in ended[half:]])
    else:
        write_olmo(folder / "part-0.npy", ended[:half], "<u4" if "u4" in form else "<u2",
                   table="without" not in form)  # fmt: skip
        write_olmo(folder / "deep/part-1.npy", documents[half:])
    data = prepare(find_tokens(folder, tokenizer), tokenizer, tmp_path / "data")
    assert stored(data) == sorted(documents)
    assert data.manifest["in_sections"] is False


def test_ids_stay_as_they_are_where_the_tokenizer_would_cut_otherwise(tokenizer, tmp_path):
    """Three words of single bytes, which encoding the text again would join."""
    spelled = [
        [tokenizer.encode(c)[-1] for c in f"document {n} of single letters " * 3]
        for n in range(30)
    ]  # fmt: skip
    assert spelled[0] != tokenizer.encode(tokenizer.decode(spelled[0]))
    write_ds(tmp_path / "x.ds", spelled)
    data = prepare(find_tokens(tmp_path / "x.ds", tokenizer), tokenizer, tmp_path / "data",
                   near_duplicates="ignore")  # fmt: skip
    assert stored(data) == sorted(spelled)


def test_few_documents_are_not_cut(documents, tokenizer, tmp_path):
    write_ds(tmp_path / "x.ds", documents[:6])
    data = prepare(find_tokens(tmp_path, tokenizer), tokenizer, tmp_path / "data")
    assert stored(data) == sorted(documents[:6])
    assert not data.manifest["in_sections"]


def test_documents_with_a_border_inside_are_left_out(documents, tokenizer, tmp_path):
    odd = [documents[0] + [tokenizer.bos_id] + documents[1]]
    write_ds(tmp_path / "x.ds", documents[2:] + odd + [[], [tokenizer.eos_id]])
    data = prepare(find_tokens(tmp_path, tokenizer), tokenizer, tmp_path / "data")
    assert stored(data) == sorted(documents[2:])
    assert data.manifest["dropped"] == {"<bos> or <eos> within the document": 1, "empty": 2}


def damaged(kind, path, documents):
    index = path.with_name(path.name + ".index")
    if kind == "other vocabulary":
        write_ds(path, [*documents, [5, 600, 7]])
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif kind == "index cut":
        index.write_bytes(index.read_bytes()[:-3])
    elif kind == "order":
        ends = np.fromfile(index, "<u8")
        ends[0], ends[1] = ends[1], ends[0]
        ends.tofile(index)
    elif kind == "loss":
        path.with_name(path.name + ".loss").write_bytes(b"\1")
    elif kind == "numpy":
        np.save(path.with_suffix(".npy"), np.array([1, 2, 3]))
    elif kind == "table":
        write_olmo(path.with_suffix(".npy"), documents)
        with gzip.open(path.with_suffix(".csv.gz"), "wt") as f:
            f.write("start,end,id,src,loc\n")
    elif kind == "gap":
        write_olmo(path.with_suffix(".npy"), documents)
        with gzip.open(path.with_suffix(".csv.gz"), "wt") as f:
            f.write("0,5,a,b,1\n6,9,a,b,2\n")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("other vocabulary", r"has the id 600, and the tokenizer has 512 ids"),
        ("cut", "neither 2 nor 4 bytes each"),
        ("index cut", "no multiple of 8: it is cut short"),
        ("order", "end before they begin"),
        ("loss", "is a loss mask"),
        ("numpy", "was written by numpy.save and has a header"),
        ("table", "is not a table of start,end,id,src,loc"),
        ("gap", "a document starts at 6, after one that ended at 5"),
    ],
)
def test_damaged_files_are_one_clear_error(kind, message, documents, tokenizer, tmp_path):
    write_ds(tmp_path / "x.ds", documents)
    damaged(kind, tmp_path / "x.ds", documents)
    with pytest.raises(DataError, match=message):
        prepare(find_tokens(tmp_path, tokenizer), tokenizer, tmp_path / "data")


def test_nothing_to_read(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no token files in"):
        find_tokens(tmp_path, tokenizer)
    with pytest.raises(DataError, match="no file or folder at"):
        find_tokens(tmp_path / "x", tokenizer)


def test_without_an_index_documents_end_with_eos(tokenizer, tmp_path):
    np.array([5, 6, 1, 7, 1, 1, 8], "<u2").tofile(tmp_path / "x.npy")
    file = TokenFile.open(tmp_path / "x.npy", tokenizer.vocab_size)
    assert [ids.tolist() for ids in file.documents(1)] == [[5, 6, 1], [7, 1], [1], [8]]
    (tmp_path / "x.npy").write_bytes(b"abc")
    with pytest.raises(DataError, match="no multiple of the 2 bytes of an id"):
        TokenFile.open(tmp_path / "x.npy", tokenizer.vocab_size)


def test_data_with_a_loss_mask_is_not_exported(text_data, tokenizer, tmp_path):
    masked = [[2, 5, 6, 1]]
    entry = write_shard(
        tmp_path / "data", "shards/train-00000.tokens", masked, ["a"],
        {"bytes": 2, "text_sha256": ""}, 512, masks=[[True] * 4],
    )  # fmt: skip
    split = {"documents": 1, "tokens": 4, "bytes": 2, "shards": [entry]}
    data = Dataset(tmp_path / "data", {**text_data.manifest, "splits": {"train": split}})
    with pytest.raises(DataError, match="has a loss mask, which token files would lose"):
        export_datatrove(data, tmp_path / "ds")


@pytest.mark.slow
def test_datatroves_own_files(corpus_folder, tokenizer, text_data, tmp_path):
    """Its tokenizer step writes what is read here, and its dataset reads what is written."""
    datatrove = pytest.importorskip("datatrove", reason="needs datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.utils.dataset import DatatroveFileDataset

    assert datatrove
    tokenizer.save(tmp_path / "tok")
    texts = [p.read_text() for p in sorted(corpus_folder.iterdir())]
    step = DocumentTokenizer(
        str(tmp_path / "ds"), str(tmp_path / "tok/tokenizer.json"), eos_token="<eos>",
        shuffle_documents=False,
    )  # fmt: skip
    step.run([Document(text, str(n)) for n, text in enumerate(texts)], 0, 1)
    data = prepare(find_tokens(tmp_path / "ds", tokenizer), tokenizer, tmp_path / "data")
    assert stored(data) == stored(text_data)
    export_datatrove(text_data, tmp_path / "out")
    path = tmp_path / "out/train/00000_train.ds"
    theirs = DatatroveFileDataset(str(path), 31, return_positions=True)
    split = text_data.split("train")
    assert len(theirs) == split.token_count // 32
    first = theirs[0]
    assert first["input_ids"].tolist() == split.read(0, 32).tolist()
    assert first["positions"].tolist() == list(range(32))


def test_the_record_of_an_export(text_data, tmp_path):
    export_datatrove(text_data, tmp_path / "ds")
    about = json.loads((tmp_path / "ds/export.json").read_text())
    assert about["fingerprint"] == text_data.fingerprint
    assert about["licence"] == text_data.licence
