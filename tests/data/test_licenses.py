"""Licenses of documents: read from a field, kept in shards, summed in the manifest."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from gemmule.data import prepare as prepare_module
from gemmule.data.corpus import SPLITS
from gemmule.data.dataset import Dataset
from gemmule.data.mixture.mixed_dataset import MixedDataset
from gemmule.data.mixture.settings import MixtureSource
from gemmule.data.prepare import prepare
from gemmule.errors import DataError, OutputError

WORDS = ["ship", "sea", "captain", "sail", "wind", "harbour", "old", "red", "never", "under"]


def texts(count, word=""):
    """Documents with little in common."""
    return [
        f"{word} {n} " + " ".join(WORDS[(n * k) % 10] for k in range(1, 9)) for n in range(count)
    ]


def records(count=60):
    licenses = ["MIT", ["Apache-2.0", "MIT"], None, "  CC0-1.0\n"]
    return [
        {"text": text, "meta": {"license": licenses[n % 4]}, "n": n}
        for n, text in enumerate(texts(count))
    ]


@pytest.fixture(scope="module")
def licensed(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("licensed")
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "_MIN_SHARD_BYTES", 500)
        return prepare(
            folder / "text.jsonl", tokenizer, folder / "data", licence="ODC-By",
            license_field="meta.license", near_duplicates="ignore",
        )  # fmt: skip


def test_each_document_has_its_license_or_that_of_the_corpus(licensed):
    expected = ["MIT", "Apache-2.0, MIT", "ODC-By", "CC0-1.0"]
    for name in SPLITS:
        split = licensed.split(name)
        keys = [int(key.rpartition("#")[2]) for key in split.document_names()]
        assert list(split.document_provenance("license")) == [expected[n % 4] for n in keys]
        assert set(split.document_provenance("source")) == {None}
        tokens = licensed.manifest["splits"][name]["tokens_by"]["license"]
        assert sum(tokens.values()) == split.token_count
        mit = sum(len(split.document(i)) for i, n in enumerate(keys) if n % 4 == 0)
        assert tokens.get("MIT", 0) == mit


def test_a_stopped_command_continues_to_the_same_bytes(licensed, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_MIN_SHARD_BYTES", 500)
    again = tmp_path / "data"
    arguments = {
        "licence": "ODC-By", "license_field": "meta.license", "near_duplicates": "ignore",
    }  # fmt: skip
    source = licensed.path.parent / "text.jsonl"
    prepare(source, tokenizer, again, **arguments)
    (again / "manifest.json").unlink()
    shard = min(again.glob("shards/train-*.json"))
    record = json.loads(shard.read_text())
    record["provenance"]["license"]["documents"].reverse()
    shard.write_text(json.dumps(record))
    prepare(source, tokenizer, again, **arguments)
    for path in again.glob("shards/*"):
        assert path.read_bytes() == (licensed.path / "shards" / path.name).read_bytes()
    with pytest.raises(OutputError, match="the same text with other settings"):
        prepare(source, tokenizer, again, licence="ODC-By", near_duplicates="ignore")


def test_columns_of_parquet(tokenizer, tmp_path):
    rows = [{"text": row["text"], "license": row["meta"]["license"]} for row in records()]
    for row in rows:
        row["license"] = str(row["license"])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    data = prepare(
        tmp_path / "x.parquet", tokenizer, tmp_path / "data", license_field="license",
        near_duplicates="ignore",
    )  # fmt: skip
    assert "MIT" in data.manifest["splits"]["train"]["tokens_by"]["license"]


def test_a_field_that_no_record_has(tokenizer, tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records()))
    with pytest.raises(DataError, match="has a license in 'licence': name the field"):
        prepare(tmp_path / "text.jsonl", tokenizer, tmp_path / "data", license_field="licence")
    with pytest.raises(DataError, match="has no field 'license': leave out --license-field"):
        prepare(None, tokenizer, tmp_path / "data", license_field="license")


def test_without_licenses_nothing_is_added(tokenizer, corpus_folder, tmp_path):
    data = prepare(corpus_folder, tokenizer, tmp_path / "data")
    shard = min(data.path.glob("shards/train-*.json"))
    assert "provenance" not in json.loads(shard.read_text())
    assert "tokens_by" not in data.manifest["splits"]["train"]
    assert "license_field" not in json.loads((data.path / "plan.json").read_text())


def test_a_mixture_adds_up_the_licenses(licensed, tokenizer, corpus_folder, tmp_path):
    plain = prepare(corpus_folder, tokenizer, tmp_path / "plain", licence="CC0-1.0")
    both = MixedDataset.open_all(
        [MixtureSource(path=licensed.path), MixtureSource(path=plain.path)]
    )
    tokens = both.manifest["splits"]["train"]["tokens_by"]["license"]
    own = licensed.manifest["splits"]["train"]["tokens_by"]["license"]
    assert tokens["CC0-1.0"] == own["CC0-1.0"] + plain.split("train").token_count
    assert tokens["MIT"] == own["MIT"]
    assert isinstance(both, Dataset)
