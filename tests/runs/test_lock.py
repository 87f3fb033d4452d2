"""A folder is written by one process at a time; the processes here are real."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gemmule.errors import OutputError
from gemmule.runs import lock
from gemmule.runs.lock import is_lock, locked, locked_output
from gemmule.runs.run_dir import claim

HOLD = """
import sys
from pathlib import Path
from gemmule.runs.lock import locked, locked_output
with (locked_output if sys.argv[3:] else locked)(*map(Path, sys.argv[1:2]), *sys.argv[2:3]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, part: str = "1/1") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), part],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as other:
        message = rf"run is being written by process {other.pid} \(-c .*\) since 20.*: wait until"
        with pytest.raises(OutputError, match=message) as caught, locked(tmp_path / "run"):
            pass
        assert caught.value.exit_code == 2
        other.communicate()  # it ends, and with it the lock
        with locked(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / ".lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / "run").exists()  # nothing was written into it


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.communicate()
        assert (tmp_path / ".lock").exists()
        with locked(tmp_path):
            pass
    assert not (tmp_path / ".lock").exists()


def test_parts_exclude_each_other_where_they_overlap(tmp_path: Path) -> None:
    with holder(tmp_path, "2/4"):
        for disjoint in ("1/2", "1/4", "3/4", "4/4", "1/6"):
            with locked(tmp_path, disjoint):
                pass
        for overlapping in ("2/4", "1/1", "2/2", "1/3", "6/8"):
            with pytest.raises(OutputError, match="is being written by"):
                locked(tmp_path, overlapping).__enter__()
    assert {p.name for p in tmp_path.iterdir()} == {".lock-2-of-4"}


def test_locks_within_a_process_exclude_each_other(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(OutputError, match=f"process {os.getpid()} "):
        locked(tmp_path).__enter__()
    with locked(tmp_path):
        pass


def test_an_output_is_locked_next_to_it(tmp_path: Path) -> None:
    out = tmp_path / "a" / "model.gguf"
    with locked_output(out):
        assert [p.name for p in out.parent.iterdir()] == [".model.gguf.lock"]
        with pytest.raises(OutputError, match=r"model\.gguf is being written by"):
            locked_output(out).__enter__()
        with locked_output(out.with_name("other.gguf")):
            pass
        out.write_text("")
    assert [p.name for p in out.parent.iterdir()] == ["model.gguf"]


def test_a_lock_does_not_make_a_folder_used(tmp_path: Path) -> None:
    with locked(tmp_path):
        claim(tmp_path)
        assert is_lock(tmp_path / ".lock")
    assert not is_lock(tmp_path / "config.toml")


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path) -> None:
    with holder(tmp_path):
        (tmp_path / ".lock").write_text("{")
        with pytest.raises(OutputError, match=r"is being written by another process: wait"):
            locked(tmp_path).__enter__()


def test_a_file_system_without_locks_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(lock.errno.ENOLCK, "No locks available")

    notes: list[str] = []
    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    monkeypatch.setattr(lock.console, "print", lambda text, **_: notes.append(text))
    with locked(tmp_path):
        pass
    assert "has no locks" in notes[0]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to"):
        locked(tmp_path / "file" / "run").__enter__()
    with pytest.raises(OutputError, match="a part of the path is a file"):
        locked_output(tmp_path / "file" / "model").__enter__()
    with pytest.raises(OutputError, match=r"a file of that name.* is in the way"):
        locked(tmp_path / "file").__enter__()
