"""Data sets of the hub as local folders: card, license, configurations and splits."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from reading import read_log

from gemmule.data.prepare import prepare
from gemmule.data.sources import find_source
from gemmule.errors import DataError

CARD = """---
license: odc-by
task_categories:
- text-generation
---
# A data set
"""
CONFIGS = """---
license: [mit, apache-2.0]
configs:
- config_name: en
  data_files:
  - split: train
    path: "english/part-*.parquet"
  - split: test
    path: ["english/held.parquet"]
- config_name: fr
  data_files: "french/*.parquet"
---
"""


def table(path, *texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), path)


def test_the_card_gives_the_license_and_is_no_text(tmp_path):
    """As the hub's client lays a snapshot out: links to blobs with the files' names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    table(blobs / "1", "first", "second")
    table(blobs / "2", "held out by its makers")
    (blobs / "3").write_text(CARD)
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data/train-00000-of-00001.parquet").symlink_to(blobs / "1")
    (snapshot / "data/test-00000-of-00001.parquet").symlink_to(blobs / "2")
    (snapshot / "README.md").symlink_to(blobs / "3")
    texts, log = read_log(snapshot)
    assert texts == ["first", "second"]
    assert find_source(snapshot).licence == "odc-by"
    assert find_source(snapshot, licence="mine").licence == "mine"
    assert log.left_out["files of another split of the data set"] == 1
    assert read_log(snapshot, subset="default/test")[0] == ["held out by its makers"]
    with pytest.raises(DataError, match="no split 'dev': name one of default/"):
        read_log(snapshot, subset="default/dev")


def test_configurations_of_the_card(tmp_path):
    (tmp_path / "README.md").write_text(CONFIGS)
    table(tmp_path / "english/part-0.parquet", "one", "two")
    table(tmp_path / "english/held.parquet", "three")
    table(tmp_path / "french/a.parquet", "un")
    table(tmp_path / "other.parquet", "unnamed")
    with pytest.raises(DataError, match="several configurations, en, fr: name one with --subset"):
        find_source(tmp_path)
    texts, log = read_log(tmp_path, subset="en")
    assert texts == ["one", "two"]
    assert dict(log.left_out) == {
        "cards of data sets, and notes next to them": 1,
        "files of another split of the data set": 1,
        "files of another configuration of the data set": 1,
        "files that the data set's card does not name": 1,
    }
    assert read_log(tmp_path, subset="en/test")[0] == ["three"]
    assert read_log(tmp_path, subset="fr")[0] == ["un"]
    assert find_source(tmp_path, subset="fr").licence == "mit, apache-2.0"
    with pytest.raises(DataError, match="no configuration 'de': name one of en, fr"):
        find_source(tmp_path, subset="de")


def test_configurations_by_folder(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    table(tmp_path / "de/train-00000-of-00001.parquet", "eins")
    table(tmp_path / "de/validation-00000-of-00001.parquet", "zwei")
    (tmp_path / "es/train").mkdir(parents=True)
    (tmp_path / "es/train/x.jsonl").write_text(json.dumps({"text": "uno"}))
    assert read_log(tmp_path, subset="de")[0] == ["eins"]
    assert read_log(tmp_path, subset="de/validation")[0] == ["zwei"]
    assert read_log(tmp_path, subset="es")[0] == ["uno"]


def test_other_folders_are_read_as_ever(tmp_path):
    (tmp_path / "README.md").write_text("---\ntitle: my notes\nlicense: mit\n---\ntext of a note")
    table(tmp_path / "test.parquet", "row")
    assert len(read_log(tmp_path)[0]) == 2
    with pytest.raises(DataError, match="is not a data set of the hub"):
        find_source(tmp_path, subset="en")


def test_a_broken_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: [mit\nconfigs: {\n---\n")
    table(tmp_path / "train.parquet", "row")
    with pytest.raises(DataError, match="the YAML at the top of"):
        find_source(tmp_path)


def test_the_license_reaches_the_manifest(tokenizer, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/README.md").write_text(CARD)
    texts = [f"row {n} has words of its own {n * n}" for n in range(30)]
    table(tmp_path / "set/data/train-0.parquet", *texts)
    data = prepare(tmp_path / "set", tokenizer, tmp_path / "data", near_duplicates="ignore")
    assert data.licence == "odc-by"
    assert sum(s["documents"] for s in data.manifest["splits"].values()) == 30
