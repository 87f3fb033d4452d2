"""Standard streams: what a terminal cannot show, and writes that fail."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemmule.console import ProgressBar, console, key_values, table
from gemmule.errors import ConfigError, StreamError
from gemmule.runtime import streams

NARROW = ["ascii", "latin-1", "cp1252", "cp437", "iso8859-5", "shift_jis"]


def written(text: str, encoding: str, folder: Path, *, required: bool = True) -> bytes:
    path = folder / "out"
    with path.open("wb") as file:
        stream = streams.open_output(file.fileno(), encoding, required=required)
        stream.write(text)
        stream.flush()
    return path.read_bytes()


@pytest.mark.parametrize("encoding", NARROW)
def test_any_text_can_be_printed_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    text = "the 海 é … – “x” ± ≤ │─┌ 🌱 \udce9 \ud800\n"
    for required in (True, False):
        assert written(text, encoding, tmp_path, required=required).startswith(b"the ")


def test_replacements(tmp_path: Path) -> None:
    text = "海 … – “x” ±1 ≤2 m² │─┌ █"
    assert written(text, "ascii", tmp_path) == b'? ... - "x" +/-1 <=2 m2 |-+ #'
    assert written("海 …", "ascii", tmp_path, required=False) == b"\\u6d77 ..."
    assert written("caf\udce9", "ascii", tmp_path) == b"caf\xe9"  # the byte of a file's name
    assert written("海 é", "latin-1", tmp_path) == b"? \xe9"
    assert written("海 …", "utf-8", tmp_path) == "海 …".encode()


def test_tables_and_progress_in_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("wb") as file:
        monkeypatch.setattr(
            console, "_file", streams.open_output(file.fileno(), "ascii", required=False)
        )
        table(["", "nats"], [["teacher", "1 ± 2"]], title="a – title")
        console.rule("about 10 minutes", align="left")
        monkeypatch.setattr(console, "_force_terminal", True)
        monkeypatch.setattr(console, "is_interactive", True)
        monkeypatch.setenv("TERM", "xterm")
        with ProgressBar("training", 10, "tok") as bar:
            bar.update(5, "loss 1.0")
    shown = (tmp_path / "out").read_bytes()
    assert b"teacher" in shown
    assert b"1 +/- 2" in shown
    assert b"training" in shown
    assert b"\\u" not in shown
    assert b"?" not in shown.replace(b"\x1b[?25", b"")  # which hide and show the cursor


def test_a_name_is_not_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "runs/[/x] [red]y :smile:"
    table([name], [[name]], title=name)
    key_values([(name, name)], title=name)
    console.print(name)
    console.rule(name)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "is_interactive", True)
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar(name, 10, "tok") as bar:
        bar.update(5, name)
    shown = capsys.readouterr().err
    assert shown.count(name) >= 9
    assert "\N{SMILING FACE WITH OPEN MOUTH AND SMILING EYES}" not in shown


def full() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def test_a_full_disk_is_one_error_and_then_silence() -> None:
    fd = full()
    try:
        stream = streams.open_output(fd, "utf-8", required=True)
        stream.write("text")
        with pytest.raises(StreamError, match="standard output: No space left on device"):
            stream.flush()
        stream.write("more")
        stream.close()  # as the interpreter does at its end
    finally:
        os.close(fd)


def test_messages_that_cannot_be_written_are_dropped() -> None:
    fd = full()
    try:
        stream = streams.open_output(fd, "utf-8", required=False)
        stream.write("text\n")
        stream.close()
    finally:
        os.close(fd)


def test_a_pipe_that_is_full_for_now() -> None:
    """Another program that has the same terminal may have made it non-blocking."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with ThreadPoolExecutor() as pool, os.fdopen(reader, "rb") as file:
        content = pool.submit(file.read)
        stream = streams.open_output(writer, "utf-8", required=True)
        stream.write("x" * 1_000_000)
        stream.close()
        os.close(writer)
        assert content.result() == b"x" * 1_000_000


def given(data: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding))
    return streams.read_stdin()


def test_a_piped_text_in_other_encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # whatever the locale says
        assert given("the 海\r\n".encode(encoding), "latin-1", monkeypatch) == "the 海\n"
    assert given(b"caf\xe9", "latin-1", monkeypatch) == "café"
    with pytest.raises(ConfigError, match="standard input: line 1 is not UTF-8 text"):
        given(b"caf\xe9", "utf-8", monkeypatch)
