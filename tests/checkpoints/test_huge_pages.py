"""A mapped file turned into huge pages: contents and addresses stay, whoever reads them."""

import copy
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from gemmule.checkpoints import huge_pages
from gemmule.checkpoints.huge_pages import HUGE
from gemmule.checkpoints.mapped_file import MappedFile

NBYTES = 11 * HUGE + 4097


@pytest.fixture
def file(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, NBYTES, dtype=np.uint8)
    content.tofile(tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def needed(monkeypatch):
    monkeypatch.setattr(huge_pages, "_helps", lambda: True)
    monkeypatch.setattr(huge_pages, "_is_huge", lambda *_: False)
    monkeypatch.setattr(huge_pages, "_PIECE", 2 * HUGE)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux moves pages")
def test_readers_notice_nothing(file, needed):
    content = np.fromfile(file, np.uint8)
    with MappedFile(file) as mapped:
        bytes_of_file = mapped.raw(0, NBYTES).numpy()
    ended, differences = threading.Event(), []

    def read():
        last = False
        while not last:
            last = ended.is_set()  # one that sees all of the moved pages
            differences.append(int((bytes_of_file != content).sum()))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    mapped.huge_pages.start()
    mapped.huge_pages.start()  # a second time is nothing
    mapped.huge_pages.wait()
    ended.set()
    for reader in readers:
        reader.join()
    assert not any(differences)
    # The pages are no longer the file's, but for less than a huge page at either end.
    with file.open("r+b") as f:
        f.write(bytes(NBYTES))
    same = bytes_of_file == content
    start = -bytes_of_file.ctypes.data % HUGE
    assert same[start : start + (NBYTES - start) // HUGE * HUGE].all()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux moves pages")
def test_without_memory_the_file_stays_mapped(file, needed, monkeypatch):
    class NoMemory:
        @staticmethod
        def mmap(*_):
            return huge_pages._FAILED

    monkeypatch.setattr(huge_pages, "_libc", NoMemory)
    mapped = MappedFile(file)
    mapped.huge_pages.start()
    mapped.huge_pages.wait()
    assert np.array_equal(mapped.raw(0, NBYTES).numpy(), np.fromfile(file, np.uint8))


@pytest.mark.parametrize("setting", ["always madvise [never]\n", None])
def test_systems_without_huge_pages_are_left_alone(file, tmp_path, monkeypatch, setting):
    place = tmp_path / "enabled"
    if setting is not None:
        place.write_text(setting)
    monkeypatch.setattr(huge_pages, "_SETTING", place)
    monkeypatch.delattr(huge_pages, "_replace")
    mapped = MappedFile(file)
    mapped.huge_pages.start()
    mapped.huge_pages.wait()
    assert huge_pages._helps() is False


def test_a_copy_has_none(file):
    mapped = MappedFile(file)
    assert copy.deepcopy(mapped.huge_pages) is None
    assert pickle.loads(pickle.dumps(mapped.huge_pages)) is None


def test_huge_pages_of_a_mapping_are_counted(tmp_path, monkeypatch):
    listed = tmp_path / "smaps"
    listed.write_text(
        "1000000-1800000 r--s 00000000 08:01 7 /a\nRss: 8192 kB\nFilePmdMapped:  6144 kB\n"
        "1800000-1a00000 r--p 00000000 00:00 0\nAnonHugePages:  2048 kB\nVmFlags: rd mr\n"
        "2000000-2800000 r--s 00000000 08:01 8 /b\nFilePmdMapped:  8192 kB\n"
    )
    monkeypatch.setattr(huge_pages, "_MAPPINGS", listed)
    assert list(huge_pages._huge_bytes(0x1000000, 0x1A00000)) == [6144 * 1024, 2048 * 1024]
    assert huge_pages._is_huge(0x1000000, 0xA00000)
    assert not huge_pages._is_huge(0x3000000, 0xA00000)
    monkeypatch.setattr(huge_pages, "_MAPPINGS", Path("/nowhere/smaps"))
    assert not huge_pages._is_huge(0x1000000, 0xA00000)
