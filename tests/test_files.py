import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gemmule import files
from gemmule.errors import OutputError


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    files.write_text(path, "one")
    with pytest.raises(ZeroDivisionError), files.atomic_path(path) as tmp:
        tmp.write_text("half of tw")
        raise ZeroDivisionError
    assert path.read_text() == "one"
    files.write_text(path, "two")
    assert path.read_text() == "two"
    assert left(path.parent) == ["a.txt"]


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    for path in (pipe, link):
        with pytest.raises(OutputError, match="is a device or a pipe: name a file"):
            files.write_text(path, "text")
    assert not Path("/dev/null").is_file()
    assert left(tmp_path) == ["null", "pipe"]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"

    def write(name: str) -> None:
        with files.atomic_dir(path) as tmp:
            (tmp / "deep").mkdir()
            (tmp / "deep" / name).write_text(name)
            if name == "bad":
                raise ZeroDivisionError

    write("one")
    with pytest.raises(ZeroDivisionError):
        write("bad")
    assert left(path / "deep") == ["one"]
    write("two")
    assert left(path / "deep") == ["two"]
    assert left(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EFBIG, "larger than this file system or limit allows"),
    ],
)
def test_refusals_are_one_clear_error(
    number: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_text(tmp_path / "a", "old")

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=f"^cannot write to .*/a: .*{reason}"):
        files.write_text(tmp_path / "a", "new")
    with pytest.raises(OutputError, match=reason), files.atomic_dir(tmp_path / "b") as tmp:
        (tmp / "c").write_text("new")
    assert left(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file of that name, or of its folder's, is in the way"):
        files.write_text(tmp_path / "file" / "a", "")
    with (
        pytest.raises(OutputError, match="a part of the path is a file"),
        files.atomic_dir(tmp_path / "file" / "deep" / "a"),
    ):
        pass


def test_our_own_bugs_are_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="bad descriptor"), files.writing_to(tmp_path):
        raise OSError(errno.EBADF, "bad descriptor")


def test_json(tmp_path: Path) -> None:
    value = {"text": "naïve 🌱", "none": None, "list": [1, 2.5]}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert "🌱" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert files.read_json(tmp_path / "a.json") == value


def test_names_that_are_not_text_survive(tmp_path: Path) -> None:
    """A byte that is not UTF-8 stays; what a locale without UTF-8 left undecoded is decoded."""
    path = tmp_path / "a.json"
    files.write_json(path, {"bad": "caf\udce9", "undecoded": "caf\udcc3\udca9", "half": "\ud800"})
    assert files.read_json(path)["bad"] == "caf\udce9"
    assert path.read_text(encoding="utf-8").count("\\ud") == 4
    files.write_json(path, {"bad": "caf\udce9", "undecoded": "caf\udcc3\udca9"})
    assert files.read_json(path) == {"bad": "caf\udce9", "undecoded": "café"}
    assert str(OutputError("caf\udcc3\udca9 caf\udce9")) == "café caf\\udce9"


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_is_read_in_the_encoding_that_an_editor_saved_it_in(
    encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_bytes('{"name":\r\n"naïve 🌱"}\r\n'.encode(encoding))
    assert files.read_text(tmp_path / "a.json") == '{"name":\n"naïve 🌱"}\n'
    assert files.read_json(tmp_path / "a.json") == {"name": "naïve 🌱"}
    (tmp_path / "a.toml").write_bytes('name = "naïve 🌱"\r\nn = 1\r\n'.encode(encoding))
    assert files.read_toml(tmp_path / "a.toml") == {"name": "naïve 🌱", "n": 1}


@pytest.mark.parametrize("read", [files.read_json, files.read_toml])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'x = 1\ny = "caf\xe9"', "line 2 is not UTF-8 text: save it as UTF-8"),
        (b"\xff\xfe{", "line 1 is not UTF-16 text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        (b"x = " + b"[" * 20_000, r"nested too deeply|line 1 column 1"),
    ],
)
def test_text_that_cannot_be_read_says_why(
    read: Callable[[Path], object], content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a")


def test_a_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is a device, not a file"):
        files.read_text(tmp_path / "zero")


def test_json_that_is_cut_or_deep(tmp_path: Path) -> None:
    for content, message in (("", "the file is empty"), ("[" * 200_000, "nested too deeply")):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            files.read_json(tmp_path / "a.json")


def test_a_git_lfs_pointer_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 130\n"
    for name, content in (("pointer", pointer), ("model", "version 2"), ("empty", "")):
        (tmp_path / name).write_text(content)
        assert files.is_lfs_pointer(tmp_path / name) == (name == "pointer")


def test_leftovers(tmp_path: Path) -> None:
    (tmp_path / ".a.json.123.tmp").touch()
    (tmp_path / ".step-4.123.tmp").mkdir()
    (tmp_path / ".step-4.123.tmp" / "half").touch()
    (tmp_path / ".b.123.old.tmp").mkdir()
    assert files.holds_only_leftovers(tmp_path)
    for mine in ("notes.tmp", ".hidden", ".mine.tmp", "a.json"):
        (tmp_path / mine).touch()
        assert not files.holds_only_leftovers(tmp_path)
    files.remove_leftovers(tmp_path)
    assert left(tmp_path) == [".hidden", ".mine.tmp", "a.json", "notes.tmp"]
    files.remove_leftovers(tmp_path / "missing")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    files.write_text(tmp_path / "a.txt", "text")
    with files.atomic_dir(tmp_path / "folder") as folder:
        (folder / "b.txt").touch()
    assert (tmp_path / "a.txt").read_text() == "text"
    assert (tmp_path / "folder" / "b.txt").exists()


def test_an_fsync_that_finds_the_disk_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="the disk reports an error"):
        files.write_text(tmp_path / "a.txt", "text")
    assert not list(tmp_path.iterdir())
