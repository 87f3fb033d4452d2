import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gemmule.data import prepare as prepare_module
from gemmule.data import shards
from gemmule.data.corpus import SPLITS
from gemmule.data.dataset import Dataset, token_type
from gemmule.data.prepare import prepare, sample_texts
from gemmule.errors import DataError, OutputError
from gemmule.model.tokenizer import train_tokenizer
from gemmule.runs.lock import locked


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(prepare_module, "_MIN_SHARD_BYTES", 8_000)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def prepared(corpus_folder, tokenizer, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "_MIN_SHARD_BYTES", 8_000)
        return prepare(corpus_folder, tokenizer, tmp_path_factory.mktemp("data"), licence="CC0-1.0")


def test_every_document_comes_back(prepared, corpus_folder, tokenizer):
    contents = []
    for name in SPLITS:
        split = prepared.split(name)
        whole = split.read(0, split.token_count)
        assert len(whole) == len(split) == split.token_count
        documents = [split.document(n) for n in range(split.document_count)]
        assert np.array_equal(np.concatenate(documents), whole)
        assert all(d[0] == 2 and d[-1] == 1 and (d == 2).sum() == 1 for d in documents)
        texts = [tokenizer.decode(d) for d in documents]
        assert split.byte_count == sum(len(t.encode()) for t in texts)
        contents += texts
    assert sorted(contents) == sorted(p.read_text() for p in corpus_folder.iterdir())


def test_reads_cross_shards_and_stop_at_the_end(prepared):
    split = prepared.split("train")
    assert len(prepared.manifest["splits"]["train"]["shards"]) > 5
    whole = split.read(0, split.token_count)
    for start, stop in [(0, 1), (17, 9000), (9000, 9000), (len(split) - 3, len(split) + 10)]:
        assert np.array_equal(split.read(start, stop), whole[start:stop])
    with pytest.raises(DataError, match="no document 1000"):
        split.document(1000)


def test_manifest_says_what_it_is(prepared, corpus_folder, tokenizer):
    manifest = prepared.manifest
    assert manifest["name"] == prepared.name == corpus_folder.name
    assert manifest["licence"] == prepared.licence == "CC0-1.0"
    assert manifest["source"] == str(corpus_folder)
    assert manifest["tokenizer"] == tokenizer.fingerprint
    assert sum(s["documents"] for s in manifest["splits"].values()) == 120
    assert prepared.tokenizer.fingerprint == tokenizer.fingerprint
    assert manifest["dropped"] == {}


def test_workers_change_nothing(prepared, corpus_folder, tokenizer, tmp_path):
    for workers in (1, 4):
        out = tmp_path / str(workers)
        prepare(corpus_folder, tokenizer, out, licence="CC0-1.0", workers=workers)
        assert content(out) == content(prepared.path)


def test_a_finished_folder_is_returned_and_nothing_is_written(prepared, corpus_folder, tokenizer):
    before = {path: path.stat().st_mtime_ns for path in prepared.path.rglob("*")}
    again = prepare(corpus_folder, tokenizer, prepared.path, licence="CC0-1.0")
    assert again.fingerprint == prepared.fingerprint
    assert {path: path.stat().st_mtime_ns for path in prepared.path.rglob("*")} == before


def test_a_folder_that_is_being_written_is_refused(prepared, corpus_folder, tokenizer, tmp_path):
    out = tmp_path / "data"
    with locked(out), pytest.raises(OutputError, match="is being written by process"):
        prepare(corpus_folder, tokenizer, out, licence="CC0-1.0")
    assert not out.exists()
    out.mkdir()
    (out / ".lock").touch()  # left by a process that was killed
    prepare(corpus_folder, tokenizer, out, licence="CC0-1.0")
    assert content(out) == content(prepared.path)
    assert not (out / ".lock").exists()


def test_an_unfinished_folder_is_taken_over(prepared, corpus_folder, tokenizer, tmp_path):
    out = tmp_path / "data"
    other = train_tokenizer([p.read_text() for p in sorted(corpus_folder.iterdir())], 520)
    prepare(corpus_folder / "1*.txt", other, out)
    (out / "manifest.json").unlink()  # as if it had been killed before
    with locked(out), pytest.raises(OutputError, match="is being written by process"):
        prepare(corpus_folder, tokenizer, out, licence="CC0-1.0")
    assert prepare(corpus_folder, tokenizer, out, licence="CC0-1.0").path == out
    assert content(out) == content(prepared.path)
    (out / "manifest.json").unlink()
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "recipe": "0"}))  # another kind of folder
    with pytest.raises(OutputError, match="choose another folder"):
        prepare(corpus_folder, tokenizer, out, licence="CC0-1.0")


def test_a_folder_in_use_is_refused(prepared, corpus_folder, tokenizer, tmp_path):
    (tmp_path / "precious.txt").write_text("keep me")
    with pytest.raises(OutputError, match="holds other files"):
        prepare(corpus_folder, tokenizer, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    with pytest.raises(OutputError, match="a file of that name"):
        prepare(corpus_folder, tokenizer, tmp_path / "precious.txt")
    with pytest.raises(OutputError, match=r"other text .*choose another folder"):
        prepare(corpus_folder / "1*.txt", tokenizer, prepared.path)
    other = train_tokenizer([p.read_text() for p in sorted(corpus_folder.iterdir())], 520)
    with pytest.raises(OutputError, match="with another tokenizer"):
        prepare(corpus_folder, other, prepared.path, licence="CC0-1.0")
    with pytest.raises(OutputError, match="other settings"):
        prepare(corpus_folder, tokenizer, prepared.path, licence="MIT")
    with pytest.raises(DataError, match="workers 0"):
        prepare(corpus_folder, tokenizer, tmp_path / "new", workers=0)


def test_progress_reaches_its_total(corpus_folder, tokenizer, tmp_path):
    calls = []
    prepare(corpus_folder, tokenizer, tmp_path / "d", progress=lambda *call: calls.append(call))
    done, totals = zip(*[(d, t) for d, t, unit in calls if unit == "bytes"], strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}
    assert {unit for *_, unit in calls} == {"documents", "bytes"}


def test_unfinished_and_damaged_shards_are_made_again(prepared, corpus_folder, tokenizer, tmp_path):
    out = tmp_path / "d"
    shutil.copytree(prepared.path, out)
    (out / "manifest.json").unlink()
    shards = sorted((out / "shards").glob("train-*.tokens"))
    kept = shards[0].stat().st_ino
    shards[1].with_suffix(".json").unlink()
    shards[2].write_bytes(shards[2].read_bytes()[:-2] + b"\xff\xff")
    shards[3].with_suffix(".offsets").unlink()
    shards[4].with_suffix(".json").write_text("{")
    (out / "shards" / ".train-00009.tokens.123.tmp").write_bytes(b"half")
    with pytest.raises(DataError, match="not a finished data folder"):
        Dataset.open(out)
    prepare(corpus_folder, tokenizer, out, licence="CC0-1.0")
    assert content(out) == content(prepared.path)
    assert shards[0].stat().st_ino == kept  # not written again


KILLED = """
import sys, time
from pathlib import Path
from gemmule.data import prepare as p, shards
from gemmule.model.tokenizer import Tokenizer
p._MIN_SHARD_BYTES = 8_000
make = p.make_shard
def slow(*args):
    time.sleep(0.05)
    return make(*args)
p.make_shard = slow
corpus, tokenizer, out = map(Path, sys.argv[1:])
assert "torch" not in sys.modules
p.prepare(corpus, Tokenizer.load(tokenizer), out, licence="CC0-1.0", workers=2)
"""


@pytest.mark.parametrize("shards_before", [0, 4])
def test_killed_anywhere_the_result_is_the_same(prepared, corpus_folder, tmp_path, shards_before):
    out = tmp_path / "d"
    command = [sys.executable, "-c", KILLED, str(corpus_folder), str(prepared.path / "tokenizer")]
    process = subprocess.Popen([*command, str(out)])
    deadline = time.monotonic() + 30
    while len(list(out.glob("shards/*.json"))) < shards_before or not (out / "plan.json").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    prepare(corpus_folder, prepared.tokenizer, out, licence="CC0-1.0")
    assert content(out) == content(prepared.path)


def test_open_refuses_what_is_not_whole(prepared, tokenizer, tmp_path):
    with pytest.raises(DataError, match="no data folder"):
        Dataset.open(tmp_path / "absent")
    other = train_tokenizer(["some other text entirely " * 50, "abcdefgh" * 9], 512 + 1)
    with pytest.raises(DataError, match="made with another tokenizer"):
        Dataset.open(prepared.path, other)
    out = tmp_path / "d"
    shutil.copytree(prepared.path, out)
    shard = next((out / "shards").glob("*.tokens"))
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match="damaged"):
        Dataset.open(out)
    shard.unlink()
    with pytest.raises(DataError, match="is missing"):
        Dataset.open(out)
    (out / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="another version"):
        Dataset.open(out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        Dataset.open(out)
    with pytest.raises(DataError, match="no split 'test'"):
        Dataset.open(prepared.path).split("test")


def test_full_disk_is_a_clear_error_and_the_run_can_go_on(
    prepared, corpus_folder, tokenizer, tmp_path, monkeypatch
):
    real = np.ndarray.tofile
    calls = iter(range(1000))

    class Full(np.ndarray):
        def tofile(self, *args, **kwargs):
            if next(calls) > 3:
                raise OSError(28, "No space left on device")
            real(self, *args, **kwargs)

    monkeypatch.setattr(shards.np, "concatenate", _viewed(shards.np.concatenate, Full))
    with pytest.raises(OutputError, match="the disk is full"):
        prepare(corpus_folder, tokenizer, tmp_path / "d", licence="CC0-1.0")
    monkeypatch.undo()
    monkeypatch.setattr(prepare_module, "_MIN_SHARD_BYTES", 8_000)
    prepare(corpus_folder, tokenizer, tmp_path / "d", licence="CC0-1.0")
    assert content(tmp_path / "d") == content(prepared.path)


def _viewed(function, kind):
    return lambda *args, **kwargs: function(*args, **kwargs).view(kind)


def test_token_type_follows_the_vocabulary():
    assert token_type(65535).itemsize == 2
    assert token_type(65536).itemsize == 4


def test_samples_for_a_tokenizer_are_training_text_only(prepared, corpus_folder, tokenizer):
    train = prepared.split("train")
    texts = [tokenizer.decode(train.document(n)) for n in range(train.document_count)]
    assert list(sample_texts(corpus_folder)) == texts
    few = list(sample_texts(corpus_folder, max_bytes=train.byte_count // 4 + 1))
    assert few == texts[::4]


def test_documents_keep_their_names(prepared, corpus_folder, tokenizer, tmp_path):
    train = prepared.split("train")
    names = list(train.document_names())
    starts = train.document_starts()
    for n in (0, 7, len(names) - 1):
        document = train.document(n)
        file, _, number = names[n].partition("#")
        assert number == "0"
        assert tokenizer.decode(document) == (corpus_folder / file).read_text()
        assert np.array_equal(train.read(starts[n], starts[n] + len(document)), document)
    assert len(starts) == len(names) == train.document_count
    assert "names" not in json.dumps(prepared.manifest)  # which grows with shards, not documents


def test_a_folder_without_names_is_read_all_the_same(prepared, tmp_path):
    out = tmp_path / "d"
    shutil.copytree(prepared.path, out)
    record, broken, *others = sorted((out / "shards").glob("train-*.json"))
    entry = json.loads(record.read_text())
    del entry["names"]
    record.write_text(json.dumps(entry))
    broken.write_text("{")
    for path in others[1:]:
        path.unlink()
    names = list(Dataset.open(out).split("train").document_names())
    known = json.loads(others[0].read_text())["names"]
    assert [name for name in names if name] == known
    assert len(names) == prepared.split("train").document_count
