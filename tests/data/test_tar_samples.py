"""Tar archives of samples: read as they come, never unpacked, refused when damaged."""

import gzip
import io
import json
import tarfile

import pytest
from reading import read, read_log

from gemmule.data import tar_samples
from gemmule.data.read_log import ReadLog
from gemmule.data.sources import find_source
from gemmule.data.unusable import MalformedError
from gemmule.errors import DataError


def member(name, data=b"", kind=tarfile.REGTYPE, **about):
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    for key, value in about.items():
        setattr(info, key, value)
    return info, data


def archive(*members, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def samples(count):
    for n in range(count):
        about = {"license": ["MIT", "CC0-1.0"][n % 2], "n": n}
        yield member(f"shard/{n:06d}.txt", f"text {n}".encode())
        yield member(f"shard/{n:06d}.json", json.dumps(about).encode())
        yield member(f"shard/{n:06d}.jpg", b"\xff\xd8" * 50)


def test_text_and_fields_of_each_sample(tmp_path):
    (tmp_path / "a.tar").write_bytes(archive(*samples(30)))
    source = find_source(tmp_path, license_field="license")
    log = ReadLog()
    documents = list(source.documents(log))
    assert [d.text for d in documents] == [f"text {n}" for n in range(30)]
    assert [d.licence for d in documents] == ["MIT", "CC0-1.0"] * 15
    assert documents[3].key == "a.tar#3"
    assert dict(log.left_out) == {"tar members of another type": 30}


def test_text_in_a_field_of_the_json(tmp_path):
    rows = [{"meta": {"body": f"body {n}"}} for n in range(3)]
    members = [member(f"{n}.json", json.dumps(row).encode()) for n, row in enumerate(rows)]
    (tmp_path / "a.tgz").write_bytes(gzip.compress(archive(*members)))
    assert read(tmp_path, field="meta.body")[0] == ["body 0", "body 1", "body 2"]
    assert read(tmp_path / "a.tgz", field="meta.body")[0] == ["body 0", "body 1", "body 2"]
    with pytest.raises(DataError, match="has no field 'text'; its fields are meta"):
        read(tmp_path / "a.tgz")


def test_names_and_members_that_mean_harm_do_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = archive(
        member("../../escaped.txt", b"up"),
        member("/etc/absolute.txt", b"root"),
        member("a\x1b[2J\n\u202e.txt", b"controls"),
        member("n" * 5000 + ".txt", b"long"),
        member("link.txt", kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("hard.txt", kind=tarfile.LNKTYPE, linkname="../../escaped.txt"),
        member("device.txt", kind=tarfile.CHRTYPE),
        member("pipe.txt", kind=tarfile.FIFOTYPE),
        member("folder.txt", kind=tarfile.DIRTYPE),
        member("setuid.txt", b"mode", mode=0o6777),
    )
    (tmp_path / "x.tar").write_bytes(hostile)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    texts, log = read_log(tmp_path / "x.tar")
    assert texts == ["up", "root", "controls", "long", "mode"]
    assert log.left_out["tar members that are no files"] == 4
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    keys = [d.key for d in find_source(tmp_path / "x.tar").documents(ReadLog())]
    assert keys == [f"x.tar#{n}" for n in range(5)]


def test_what_cannot_be_used_is_counted(tmp_path):
    data = archive(
        member("1.txt", b"good"), member("2.txt", b"\xff\x00\xfe broken \xff"),
        member("3.json", b"{not json"), member("4.json", b"[1]"), member("5.txt", b"fine"),
    )  # fmt: skip
    (tmp_path / "x.tar").write_bytes(data)
    texts, left_out = read(tmp_path)
    assert texts == ["good", "fine"]
    assert sum(left_out.values()) == 3


def test_an_archive_without_text_in_a_folder_is_left_out(tmp_path):
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "pictures.tar").write_bytes(archive(member("1.jpg", b"x")))
    texts, left_out = read(tmp_path)
    assert (texts, left_out) == (["a note"], {"tar members of another type": 1})


def broken(whole, how):
    if how == "cut in a member":
        return whole[: 512 + 100]
    if how == "cut between members":
        return whole[: 2 * 1024]
    if how == "a header in the middle":
        return whole[:1024] + b"\x07" * 512 + whole[1536:]
    if how == "no tar":
        return b"just text " * 200
    return b""


@pytest.mark.parametrize(
    "how", ["cut in a member", "cut between members", "a header in the middle", "no tar", "empty"]
)
def test_damaged_archives_are_refused(how, tmp_path):
    whole = archive(*(member(f"{n}.txt", b"text %d" % n) for n in range(9)))
    assert list(tar_samples.rows([whole], "x", None, ReadLog()))
    with pytest.raises(MalformedError):
        list(tar_samples.rows([broken(whole, how)], "x", None, ReadLog()))
    (tmp_path / "x.tar").write_bytes(broken(whole, how))
    with pytest.raises(DataError, match="is not valid tar"):
        read(tmp_path / "x.tar")


def test_a_header_that_would_fill_memory_is_refused():
    info = tarfile.TarInfo("x.txt")
    info.size, info.type = 10**12, tarfile.XHDTYPE
    endless = (bytes(1 << 20) for _ in range(40))
    with pytest.raises(MalformedError, match="a header is larger than 16 MB"):
        list(
            tar_samples.rows(_after(info.tobuf(tarfile.GNU_FORMAT), endless), "x", None, ReadLog())
        )


def _after(head, blocks):
    yield head
    yield from blocks


def test_a_large_member_that_is_not_read_costs_no_memory():
    info = tarfile.TarInfo("x.bin")
    info.size = 200 << 20
    zeros = bytes(1 << 20)

    def blocks():
        yield info.tobuf()
        yield from (zeros for _ in range(200))
        yield archive(member("y.txt", b"after it"))

    log = ReadLog()
    assert list(tar_samples.rows(blocks(), "x", None, log)) == [{"text": "after it"}]
