"""Folders, links, patterns, special files and names: each file once, the rest counted."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from reading import read, read_log

from gemmule import files
from gemmule.data.corpus import read_corpus
from gemmule.data.prepare import prepare
from gemmule.data.read_log import dropped_lines, printable
from gemmule.data.sources import find_source
from gemmule.errors import DataError


def keys(path, **options):
    return [file.key for file in find_source(path, **options).files]


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")


def test_linked_folders_are_read_once_each(tmp_path):
    write(tmp_path / "corpus", "a/one.txt", "z.txt")
    write(tmp_path / "other", "deep/two.txt", "three.txt")
    corpus = tmp_path / "corpus"
    (corpus / "b_link").symlink_to(tmp_path / "other")
    (corpus / "c_again").symlink_to(tmp_path / "other")
    (corpus / "a0_inside").symlink_to("a")  # sorts before what it leads to
    (corpus / "a" / "cycle").symlink_to("..")
    (tmp_path / "other" / "back").symlink_to(corpus)
    assert keys(corpus) == ["a/one.txt", "b_link/deep/two.txt", "b_link/three.txt", "z.txt"]
    assert find_source(corpus).log.left_out == {}


def test_a_link_does_not_lead_above_the_corpus(tmp_path):
    write(tmp_path, "private.txt", "corpus/a.txt")
    (tmp_path / "corpus" / "up").symlink_to("..")
    (tmp_path / "corpus" / "root").symlink_to("/")
    source = find_source(tmp_path / "corpus")
    assert [file.key for file in source.files] == ["a.txt"]
    assert source.log.left_out == {"links to a folder that they are in": 2}
    assert keys(tmp_path / "corpus" / "**" / "*.txt") == [str(tmp_path / "corpus" / "a.txt")]


def test_broken_links_and_special_files_are_counted(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "target.txt")
    (tmp_path / "link.txt").symlink_to("target.txt")
    (tmp_path / "gone.txt").symlink_to("absent.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as s:
        monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
        s.bind("socket.txt")
        for path in (tmp_path, tmp_path / "*.txt", tmp_path / "**" / "*.txt"):
            source = find_source(path)
            assert len(source.files) == 3
            assert source.log.left_out == {"broken links": 2, "pipes, sockets and devices": 2}


def test_unreadable_folders_are_counted(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "closed/b.txt")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    for path in (tmp_path, tmp_path / "**" / "*.txt"):
        texts, log = read_log(path)
        assert texts == ["text of a.txt"]
        assert log.left_out == {"unreadable folders (permission denied)": 1}
        assert log.examples == {"unreadable folders (permission denied)": ["closed"]}


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root, to drop it")
def test_permissions_as_another_user():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        write(root, "a.txt", "secret.txt", "closed/b.txt")
        (root / "secret.txt").chmod(0)
        (root / "closed").chmod(0)
        os.seteuid(65534)
        try:
            if not os.access(root, os.R_OK | os.X_OK, effective_ids=True):
                pytest.skip("other users cannot enter the folder of temporary files")
            texts, log = read_log(root)
            for path in (root / "closed", root / "closed" / "b.txt", root / "secret.txt"):
                with pytest.raises(DataError, match="ermission denied"):
                    read_corpus(find_source(path))
        finally:
            os.seteuid(0)
    assert texts == ["text of a.txt"]
    assert log.left_out == {
        "unreadable folders (permission denied)": 1,
        "unreadable (permission denied)": 1,
    }


NAMED = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_what_can_be_read_only_once_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "x.txt"
    NAMED[kind](path)
    with pytest.raises(DataError, match=rf"is a {kind}: text is read more than once, so write it"):
        find_source(path)


def test_standard_input_is_refused_by_its_names(tmp_path, monkeypatch):
    code = (
        "import sys\nfrom pathlib import Path\nfrom gemmule.data.sources import find_source\n"
        "from gemmule.errors import DataError\n"
        "for name in ('-', '/dev/stdin', '/proc/self/fd/0'):\n"
        "    try: find_source(Path(name)); print('read', name)\n"
        "    except DataError as e: print(e)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=b"text", capture_output=True, timeout=60, check=True)
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 3
    assert all("read more than once" in line for line in lines)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_text("a file of that name")
    assert read("-")[0] == ["a file of that name"]


def names():
    rng = random.Random(0)
    usual = ["new\nline", "tab\t", "-dash", "a[1]", "a1", "*", "?", "[!x]", "{a,b}", "$HOME", "'q'"]
    usual += [
        '"',
        "\\",
        " ",
        " trailing ",
        "😀👩‍👩‍👧",
        "é",
        unicodedata.normalize("NFD", "é"),
        "x" * 240,
    ]
    usual += [
        "\x1b[31mred",
        "\x7f",
        "\u202eabc",
        "%s",
        "#1",
        "a#0",
        "海",
        "~",
        "CON",
        "a" * 59 + "…",
    ]
    undecodable = [os.fsdecode(bytes(rng.choices(range(0x80, 0x100), k=4))) for _ in range(5)]
    return [*usual, *undecodable]


def test_any_name_that_the_system_allows(tmp_path, tokenizer):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for n, name in enumerate(names()):
        (folder / f"{name}.txt").write_text(f"text number {n}, of a name")
    texts, log = read_log(folder)
    assert sorted(texts) == sorted(f"text number {n}, of a name" for n in range(len(names())))
    assert log.left_out == {}
    assert len(set(keys(folder))) == len(names())
    assert keys(folder) == sorted(keys(folder))
    dataset = prepare(folder, tokenizer, tmp_path / "data")
    recorded = set()
    for path in (tmp_path / "data" / "shards").glob("*.json"):
        recorded |= set(files.read_json(path)["names"])
    assert recorded == {f"{name}.txt#0" for name in names()}
    json.dumps(dataset.manifest)
    assert prepare(folder, tokenizer, tmp_path / "data").fingerprint == dataset.fingerprint


@pytest.mark.parametrize("name", names())
def test_any_name_can_be_given_by_hand_and_printed(tmp_path, name):
    (tmp_path / "b1").write_text("what [1] would match as a pattern")
    path = tmp_path / name
    path.write_bytes(b"\xff text")
    texts, log = read_log(path)
    assert texts == []
    assert log.left_out == {"not UTF-8": 1}
    with pytest.raises(DataError) as e:
        read_corpus(find_source(path))
    shown = [str(e.value), find_source(path).name, *dropped_lines({"dropped": {}}), log.summary()]
    for text in shown:
        assert text.replace("\n", "").isprintable()
        text.encode()


def test_names_in_messages_are_short():
    assert printable("usual name.txt") == "usual name.txt"
    assert printable("a\nb\udcff") == "a\\nb\\udcff"
    assert len(printable("x" * 300)) == 60


def test_examples_of_names_are_few(tmp_path):
    write(tmp_path, *(f"{n:02}.pdf" for n in range(30)), "a.docx", "b.zip", "c.7z", "d.png")
    write(tmp_path, "e.epub", "f.xlsx", "g.sqlite", "h.txt")
    log = find_source(tmp_path).log
    assert log.summary() == (
        "30 PDF files (00.pdf, 01.pdf, 02.pdf, …): convert them to text first; "
        "2 archives (b.zip, c.7z): unpack them first; "
        "1 databases (g.sqlite): export them as CSV or JSON lines; "
        "1 e-books (e.epub): convert them to text first; "
        "1 files of another type (d.png); "
        "1 spreadsheets (f.xlsx): save them as CSV; "
        "1 word processor files (a.docx): save them as text first"
    )
    (tmp_path / "h.txt").unlink()
    with pytest.raises(DataError, match=r"no text in .*30 PDF files .*convert them to text first"):
        find_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.pdf", b"anything", "PDF files"),
        ("a.txt", b"%PDF-1.7\n", "PDF files"),
        ("a", b"PK\x03\x04....", "archives"),
        ("a.docx", b"PK\x03\x04....", "archives|word processor"),
        ("book.7z", b"7z\xbc\xaf\x27\x1c", "archives"),
        ("a", b"SQLite format 3\0", "databases"),
    ],
)
def test_what_holds_no_text_as_such_is_refused_by_name(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*({reason}).* are not read; "):
        find_source(tmp_path / name)


def test_patterns(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", "b/c.txt", "b/d.md", "b/.hid/e.txt", ".hid.txt", "a[1].txt", "a1.txt")
    monkeypatch.chdir(tmp_path)
    assert keys("*.txt") == ["a.txt", "a1.txt", "a[1].txt"]
    assert keys("a[1].txt") == ["a[1].txt"]  # a file of that name comes first
    assert keys("a[1-9].txt") == ["a1.txt"]
    assert keys("**/*.txt") == ["a.txt", "a1.txt", "a[1].txt", "b/c.txt"]
    assert keys("**") == ["a.txt", "a1.txt", "a[1].txt", "b/c.txt", "b/d.md"]
    assert keys("./b/**/*.txt") == ["b/c.txt"]
    assert keys("**/.hid/*.txt") == ["b/.hid/e.txt"]
    assert keys(".hid.txt") == [".hid.txt"]
    assert keys(".hid*") == [".hid.txt"]
    assert keys("b/.hid") == ["e.txt"]
    assert keys("*/**/c.*") == ["b/c.txt"]
    assert keys(f"{tmp_path}/**/c.txt") == [f"{tmp_path}/b/c.txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keys("~/b/*.md") == [f"{tmp_path}/b/d.md"]


def test_folders_that_a_pattern_matches_are_counted(tmp_path):
    write(tmp_path, "a.txt", "b/c.txt")
    source = find_source(tmp_path / "*")
    assert [file.path.name for file in source.files] == ["a.txt"]
    assert source.log.left_out == {"folders that the pattern matches": 1}
    with pytest.raises(
        DataError, match=r"1 folders that the pattern matches \(.*\): end the pattern"
    ):
        find_source(tmp_path / "b*")


def test_patterns_pass_each_linked_folder_once(tmp_path):
    write(tmp_path, "a/x.txt", "b/y.txt")
    for n in range(6):  # as paths, 6^40 of them
        (tmp_path / "a" / f"l{n}").symlink_to("..")
        (tmp_path / "b" / f"l{n}").symlink_to("../a")
    assert [Path(key).name for key in keys(tmp_path / "**" / "*.txt")] == ["x.txt", "y.txt"]
    assert read(tmp_path)[0] == ["text of a/x.txt", "text of b/y.txt"]


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "absent/x", "file/x", "loop"])
def test_paths_that_cannot_be_are_clear_errors(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"no file or folder at|cannot read"):
        find_source(path)


def test_a_field_needs_records(tmp_path):
    write(tmp_path, "a.txt", "b.md")
    for path in (tmp_path, tmp_path / "a.txt", tmp_path / "*.txt"):
        with pytest.raises(DataError, match=r"is text without fields, so it has no field 'body'"):
            find_source(path, field="body")
    with pytest.raises(DataError, match="standard library has no field 'body'"):
        find_source(None, field="body")
    rows = [{"body": "one"}, {"body": "two"}]
    for text in (json.dumps(rows), json.dumps(rows, indent=1), "\n".join(map(json.dumps, rows))):
        (tmp_path / "train.data").write_text(text)
        assert read(tmp_path / "train.data", field="body")[0] == ["one", "two"]
        assert read(tmp_path / "train.data")[0] == [text]  # without a field it is text
    (tmp_path / "c.jsonl").write_text('{"body": "one"}')
    assert len(read(tmp_path, field="body")[0]) == 3
