"""Standard streams as a shell may hand them over: closed, full, broken, or in a narrow encoding.

`prepare` replaces the interpreter's own, so that whatever prints needs no care:

- A character that the encoding lacks is replaced, box drawing and dashes by what looks like them.
- A failed write to stdout is one StreamError (BrokenPipeError if the reader has gone), and what is
  written later is dropped, so that nothing fails again while the interpreter shuts down.
- A failed write to stderr is dropped: a lost terminal or a full log must not end a training run.
- A closed stream is opened on /dev/null, or a file opened later would take its number and get what
  is printed. Reading from a closed stdin is an error, not an empty text.
"""

import codecs
import io
import os
import select
import sys
from typing import Any

from gemmule import files
from gemmule.errors import ConfigError, StreamError

_NARROWEST = 20  # columns of a terminal
_SIMILAR = {
    **{chr(code): "+" for code in range(0x2500, 0x2580)},  # box drawing
    **{chr(code): "#" for code in range(0x2580, 0x25A0)},  # block elements
    **dict.fromkeys("─━┄┈╌═–—−", "-"), **dict.fromkeys("│┃┆┊║", "|"), **dict.fromkeys("’‘", "'"),
    **dict.fromkeys("“”„", '"'), "…": "...", "·": "-", "•": "*", "×": "x", "±": "+/-", "→": "->",
    "≤": "<=", "≥": ">=", "≈": "~", "²": "2", "₂": "2", "✓": "v", "❱": ">",
}  # fmt: skip


def _lossy(e: UnicodeError) -> tuple[str | bytes, int]:
    return _replaced(e, "?")


def _escaped(e: UnicodeError) -> tuple[str | bytes, int]:
    return _replaced(e, None)


def _replaced(e: UnicodeError, otherwise: str | None) -> tuple[str | bytes, int]:
    """A replacement for the first character that cannot be encoded; None stands for its escape."""
    if not isinstance(e, UnicodeEncodeError):
        raise e
    c = e.object[e.start]
    if "\udc80" <= c <= "\udcff":  # a byte of a file name that was not text: as it came
        return bytes([ord(c) - 0xDC00]), e.start + 1
    escape = otherwise or c.encode("ascii", "backslashreplace").decode()
    return _SIMILAR.get(c, escape), e.start + 1


codecs.register_error("gemmule.lossy", _lossy)
codecs.register_error("gemmule.escaped", _escaped)


class _Output(io.FileIO):
    """A descriptor that is written to until a write fails."""

    def __init__(self, fd: int, *, required: bool) -> None:
        super().__init__(fd, "w", closefd=False)
        self._required, self._failed = required, False

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            while not self._failed:
                written = super().write(data)
                if written is not None:
                    return written
                select.select([], [self], [])  # another program made it non-blocking
        except OSError as e:
            self._failed = True
            if self._required and isinstance(e, BrokenPipeError):
                raise
            if self._required:
                raise StreamError(f"cannot write to standard output: {e.strerror}") from None
        return size


def prepare() -> None:
    """Makes the three streams usable; those that a caller has replaced stay as they are.

    A width of the terminal in which nothing can be shown is ignored, as 0 in COLUMNS.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # closed: the lowest free number is this one
            os.set_inheritable(os.open(os.devnull, os.O_WRONLY), True)
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) < _NARROWEST:  # it says nothing, or leaves no room
        del os.environ["COLUMNS"]
    if sys.stdin is sys.__stdin__:
        sys.stdin = _input(sys.stdin)
    if sys.stdout is sys.__stdout__:
        sys.stdout = open_output(1, _encoding(sys.stdout), required=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = open_output(2, _encoding(sys.stderr), required=False)


def open_output(fd: int, encoding: str, *, required: bool) -> io.TextIOWrapper:
    """A text stream that writes to a descriptor, as described above.

    Args:
        fd: the descriptor, which stays open.
        encoding: encoding of the text.
        required: whether a failed write is an error, and replaced characters are "?", as for
            stdout. Else it is dropped, and they are escaped, so that a file name stays readable.
    """
    raw = _Output(fd, required=required)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding,
        "gemmule.lossy" if required else "gemmule.escaped",
        line_buffering=not required or raw.isatty(),
    )


def read_line() -> str:
    """The next line of standard input, with its line end; empty at the end.

    Raises:
        ConfigError: when it is closed.
    """
    try:
        return sys.stdin.readline()
    except OSError as e:
        raise ConfigError(f"cannot read standard input: {e.strerror}") from None


def read_stdin() -> str:
    """All of standard input: UTF-8, UTF-16 with a byte order mark, or as the locale says.

    Raises:
        ConfigError: when it is closed, or is not text in any of these.
    """
    if not isinstance(sys.stdin, io.TextIOWrapper):  # a caller's own
        return sys.stdin.read()
    try:
        data = sys.stdin.buffer.read()
    except OSError as e:
        raise ConfigError(
            f"cannot read standard input ({e.strerror}): give the text as an argument"
        ) from None
    try:
        return files.decode(data)
    except ValueError as e:
        try:
            return data.decode(sys.stdin.encoding)
        except UnicodeDecodeError:
            raise ConfigError(f"standard input: {e}") from None


def _input(stream: Any) -> Any:
    if stream is None:  # it was closed when the interpreter started
        return open(0, encoding="utf-8", errors="replace", closefd=False)
    if codecs.lookup(stream.encoding).name == "ascii":  # UTF-8 is the same, and more
        stream.reconfigure(encoding="utf-8")
    return stream


def _encoding(stream: Any) -> str:
    return "utf-8" if stream is None else str(stream.encoding)
